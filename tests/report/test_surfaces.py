from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import imread
from segmentation_folders import ball

from nnunetv2_crossmatch.report.surfaces import (
    AZIMUTH,
    ELEVATION,
    NO_COMPARISON_COLOUR,
    Surface,
    _colour_limit,
    _common_extent,
    _project,
    _shaded_triangles,
    draw_surfaces,
    extract_surfaces,
    signed_distance,
)

SPACING = (2.0, 1.0, 1.0)


def small() -> np.ndarray:
    return ball((10, 16, 16), 6, (20, 32, 32)).astype(bool)


def large() -> np.ndarray:
    return ball((10, 16, 16), 9, (20, 32, 32)).astype(bool)


def test_equal_masks_are_at_distance_0():
    for surface in extract_surfaces(small(), small(), SPACING):
        assert np.abs(surface.error_mm).max() < 1e-4


def test_a_prediction_that_is_too_large_is_positive_on_both_surfaces():
    for surface in extract_surfaces(small(), large(), (1, 1, 1)):
        assert surface.error_mm.mean() == pytest.approx(3, abs=0.3)


def test_a_prediction_that_is_too_small_is_negative_on_both_surfaces():
    for surface in extract_surfaces(large(), small(), (1, 1, 1)):
        assert surface.error_mm.mean() == pytest.approx(-3, abs=0.3)


def test_distances_are_in_mm():
    doubled = extract_surfaces(small(), large(), (2, 2, 2))[0]
    assert doubled.error_mm.mean() == pytest.approx(6, abs=0.6)


def test_a_surface_has_the_size_of_its_mask_in_mm():
    surface, _ = extract_surfaces(large(), small(), SPACING)
    np.testing.assert_allclose(np.ptp(surface.vertices_mm, axis=0), (38, 19, 19), atol=3)


def test_a_cube_has_the_length_of_its_voxels():
    cube = np.zeros((20, 20, 20), bool)
    cube[6:14, 6:14, 6:14] = True
    surface, _ = extract_surfaces(cube, cube, (1, 1, 1))
    np.testing.assert_allclose(np.ptp(surface.vertices_mm, axis=0), 8, atol=0.4)


def test_normals_point_outward():
    surface, _ = extract_surfaces(large(), small(), (1, 1, 1))
    from_middle = surface.vertices_mm - surface.vertices_mm.mean(axis=0)
    assert ((from_middle * surface.normals).sum(axis=1) > 0).all()


def test_a_mask_of_one_voxel_has_a_surface():
    voxel = np.zeros((20, 32, 32), bool)
    voxel[4, 4, 4] = True
    surface, _ = extract_surfaces(voxel, large(), SPACING)
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


def test_an_empty_mask_has_no_surface_and_the_other_no_distance():
    reference, prediction = extract_surfaces(small(), np.zeros_like(small()), SPACING)
    assert prediction is None
    assert np.isnan(reference.error_mm).all()


@pytest.mark.parametrize("empty", ["neither", "prediction", "both"])
def test_every_pair_is_drawn(tmp_path, empty):
    nothing = np.zeros_like(small())
    pairs = {"neither": (small(), large()), "prediction": (small(), nothing), "both": (nothing, nothing)}
    draw_surfaces({"body": pairs[empty]}, SPACING, tmp_path / "surfaces.png")
    assert imread(tmp_path / "surfaces.png").std() > 0


def test_distance_shows_as_colour(tmp_path):
    colourful = []
    for name, prediction in {"equal": small(), "large": large()}.items():
        draw_surfaces({"body": (small(), prediction)}, SPACING, tmp_path / f"{name}.png")
        picture = imread(tmp_path / f"{name}.png")[:300]
        colourful.append(np.ptp(picture[..., :3], axis=-1).mean())
    assert colourful[1] > 3 * colourful[0]


def flat(error: float = 0.0, depth: float = 0.0, outward: float = 1.0) -> Surface:
    """A triangle that faces the viewer (or not), moved towards the viewer by ``depth``."""
    up, towards = np.array([np.cos(ELEVATION), 0, 0]), -_towards()
    vertices = np.array([[0.0, 0, 0], [0, 0, 1], up]) - depth * towards
    return Surface(vertices, np.repeat(-outward * towards[None], 3, 0), np.array([[0, 1, 2]]), np.full(3, error))


def _towards() -> np.ndarray:
    """The direction to the viewer as (z, y, x)."""
    return np.array([np.sin(ELEVATION), -np.cos(ELEVATION) * np.cos(AZIMUTH), np.cos(ELEVATION) * np.sin(AZIMUTH)])


def test_the_distance_is_negative_inside_and_in_mm():
    mask = np.zeros((1, 1, 6), bool)
    mask[..., 2:4] = True
    np.testing.assert_array_equal(signed_distance(mask, np.array([1, 1, 3.0]))[0, 0], [6, 3, -3, -3, 3, 6])


def test_the_viewers_axes_are_perpendicular_and_of_length_one():
    axes = _project(np.eye(3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes[::-1]) == pytest.approx(1)


def test_the_viewer_sees_z_upward_and_x_to_the_right():
    (z, y, x) = _project(np.eye(3))
    assert z[1] > 0.9
    assert z[0] == 0
    assert x[0] == pytest.approx(np.cos(AZIMUTH))
    assert y[2] < -0.8


def test_the_frame_holds_all_surfaces_with_room():
    middle, size = _common_extent([flat(), None])
    points = _project(flat().vertices_mm)[:, :2]
    np.testing.assert_allclose(middle, (points.min(axis=0) + points.max(axis=0)) / 2)
    np.testing.assert_allclose(size, 1.06 * np.ptp(points, axis=0))


@pytest.mark.parametrize(
    ("errors", "limit"), [([], 0), ([np.nan], 0), ([0.1, -0.2], 1), ([np.nan, *[-3.0] * 99, 50], 3)]
)
def test_the_strongest_colour_stands_for_nearly_the_largest_distance(errors, limit):
    assert _colour_limit([flat(error) for error in errors]) == pytest.approx(limit)


def test_triangles_that_face_away_are_not_drawn():
    assert [len(_shaded_triangles(flat(outward=side), Normalize(-1, 1)).get_paths()) for side in (1, -1)] == [1, 0]


def test_triangles_seen_edge_on_are_drawn():
    normals = np.array([[0.0, np.sin(AZIMUTH), np.cos(AZIMUTH)]] * 3)
    level = Surface(flat().vertices_mm, normals, flat().faces, np.zeros(3))
    assert len(_shaded_triangles(level, Normalize(-1, 1)).get_paths()) == 1


def test_near_triangles_are_drawn_last():
    near, far = flat(error=1, depth=5), flat(error=-1)
    both = Surface(
        np.concatenate((near.vertices_mm, far.vertices_mm)), np.concatenate((near.normals, far.normals)),
        np.array([[0, 1, 2], [3, 4, 5]]), np.concatenate((near.error_mm, far.error_mm)),
    )  # fmt: skip
    violet, orange = _shaded_triangles(both, Normalize(-1, 1)).get_facecolors()
    assert violet[2] > violet[0]
    assert orange[0] > orange[2]


def test_what_has_nothing_to_compare_with_is_gray():
    (colour,) = _shaded_triangles(flat(np.nan), Normalize(-1, 1)).get_facecolors()
    assert len(set(colour[:3])) == 1
    assert 0.58 * NO_COMPARISON_COLOUR[0] <= colour[0] <= NO_COMPARISON_COLOUR[0]
    assert colour[3] == 1


def test_every_class_has_a_reference_and_a_prediction_in_one_frame(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (figures.append(figure), file.write_bytes(b"x")))
    nothing = np.zeros_like(small())
    draw_surfaces({"a": (small(), large()), "b": (nothing, small())}, SPACING, tmp_path / "x.png", "voxels")
    body, foot = figures[0].subfigs
    texts = [text.get_text() for axes in body.axes for text in axes.texts]
    assert sorted(texts) == ["a: prediction", "a: reference", "b: prediction", "b: reference", "empty"]
    drawn = [axes for axes in body.axes if axes.collections]
    assert drawn[0].get_xlim() == drawn[1].get_xlim() != drawn[2].get_xlim()
    assert foot.axes[0].get_xlabel() == "falls short  <  0  <  reaches too far  (voxels)"
    assert foot.axes[0].get_xlim()[0] == -foot.axes[0].get_xlim()[1]
