from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from matplotlib.image import imread

from nnunetv2_crossmatch.report.surfaces import draw_surfaces, extract_surfaces
from tests.segmentation_folders import ball

SPACING = (2.0, 1.0, 1.0)


def small_ball() -> np.ndarray:
    return ball((10, 16, 16), 6, (20, 32, 32)).astype(bool)


def large_ball() -> np.ndarray:
    return ball((10, 16, 16), 9, (20, 32, 32)).astype(bool)


def test_equal_masks_are_at_distance_0():
    for surface in extract_surfaces(small_ball(), small_ball(), SPACING):
        assert np.abs(surface.error_mm).max() < 1e-4


def test_a_prediction_that_is_too_large_is_positive_on_both_surfaces():
    for surface in extract_surfaces(small_ball(), large_ball(), (1, 1, 1)):
        assert surface.error_mm.mean() == pytest.approx(3, abs=0.3)


def test_a_prediction_that_is_too_small_is_negative_on_both_surfaces():
    for surface in extract_surfaces(large_ball(), small_ball(), (1, 1, 1)):
        assert surface.error_mm.mean() == pytest.approx(-3, abs=0.3)


def test_distances_are_in_mm():
    doubled = extract_surfaces(small_ball(), large_ball(), (2, 2, 2))[0]
    assert doubled.error_mm.mean() == pytest.approx(6, abs=0.6)


def test_a_surface_has_the_size_of_its_mask_in_mm():
    surface, _ = extract_surfaces(large_ball(), small_ball(), SPACING)
    np.testing.assert_allclose(np.ptp(surface.vertices_mm, axis=0), (38, 19, 19), atol=3)


def test_normals_point_outward():
    surface, _ = extract_surfaces(large_ball(), small_ball(), (1, 1, 1))
    from_middle = surface.vertices_mm - surface.vertices_mm.mean(axis=0)
    assert ((from_middle * surface.normals).sum(axis=1) > 0).all()


def test_a_mask_of_one_voxel_has_a_surface():
    voxel = np.zeros((20, 32, 32), bool)
    voxel[4, 4, 4] = True
    surface, _ = extract_surfaces(voxel, large_ball(), SPACING)
    assert len(surface.faces)


def test_a_mask_at_the_edge_of_the_image_has_a_closed_surface():
    surface, _ = extract_surfaces(np.ones((6, 8, 8), bool), np.ones((6, 8, 8), bool), SPACING)
    edges = np.sort(np.concatenate([surface.faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def test_surfaces_of_a_large_box_take_few_bytes_per_voxel():
    """59 bytes per voxel of the box without merging voxels."""
    reference, prediction = ball((120, 120, 120), 119, (240,) * 3) > 0, ball((120, 120, 120), 110, (240,) * 3) > 0
    tracemalloc.start()
    surface, _ = extract_surfaces(reference, prediction, (1, 1, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * reference.size
    assert surface.error_mm.mean() == pytest.approx(-9, abs=0.5)


def test_a_thin_structure_in_a_large_box_keeps_its_surface():
    line = np.zeros((200, 200, 200), bool)
    line[:, 100, 100] = True
    surface, _ = extract_surfaces(line, line, (1, 1, 1))
    assert np.ptp(surface.vertices_mm[:, 0]) == pytest.approx(200, abs=5)


def test_an_empty_mask_has_no_surface_and_gives_no_distance():
    reference, prediction = extract_surfaces(small_ball(), np.zeros_like(small_ball()), SPACING)
    assert prediction is None
    assert np.isnan(reference.error_mm).all()


@pytest.mark.parametrize("empty", ["neither", "prediction", "both"])
def test_every_pair_is_drawn(tmp_path, empty):
    nothing = np.zeros_like(small_ball())
    pairs = {"neither": (small_ball(), large_ball()), "prediction": (small_ball(), nothing), "both": (nothing, nothing)}
    draw_surfaces({"body": pairs[empty]}, SPACING, tmp_path / "surfaces.png")
    assert imread(tmp_path / "surfaces.png").std() > 0


def test_distance_is_shown_as_colour(tmp_path):
    colourful = []
    for name, prediction in {"equal": small_ball(), "large": large_ball()}.items():
        draw_surfaces({"body": (small_ball(), prediction)}, SPACING, tmp_path / f"{name}.png")
        picture = imread(tmp_path / f"{name}.png")[:300]
        colourful.append(np.ptp(picture[..., :3], axis=-1).mean())
    assert colourful[1] > 3 * colourful[0]
