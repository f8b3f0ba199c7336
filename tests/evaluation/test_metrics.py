"""metrics: values computed by hand, on anisotropic grids in 2d and 3d, and what is defined where a mask is empty."""

from __future__ import annotations

import math
from math import sqrt

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_crossmatch.evaluation.metrics import (
    Measures,
    apply_literature_convention,
    border_mask,
    compute_measures,
    surface_distances,
)


def ours(measures: Measures) -> tuple[float, ...]:
    return (
        measures.dice, measures.jaccard, measures.hd95_voxel, measures.asd_voxel, measures.hd95_mm, measures.asd_mm
    )  # fmt: skip


def mask_of(shape: tuple[int, ...], *boxes: tuple[slice | int, ...]) -> np.ndarray:
    """True within the boxes."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "expected"),
    [
        pytest.param(
            mask_of((4, 5), np.s_[:2, :2]), mask_of((4, 5), np.s_[:2, 1:3]), (1, 3), (1 / 2, 1 / 3, 1, 1 / 2, 3, 3 / 2),
            id="2d squares in the corner, one column apart",
        ),
        pytest.param(
            mask_of((1, 8), (0, 0)), mask_of((1, 8), (0, 0), (0, 4)), (5, 0.5), (2 / 3, 1 / 2, 3.6, 0, 1.8, 0),
            id="95HD between 0 and 4: distances 0, 0, 4",
        ),
        pytest.param(
            mask_of((5, 5), np.s_[1:4, 2:4], np.s_[2:4, 1]), mask_of((5, 5), (2, 2)), (1, 1),
            (2 / 9, 1 / 8, sqrt(2), (4 + 3 * sqrt(2)) / 7, sqrt(2), (4 + 3 * sqrt(2)) / 7),
            id="2d, the middle of the square is no border_mask, though a diagonal neighbour is outside",
        ),
        pytest.param(
            mask_of((4, 5, 7), (1, 2, 2)), mask_of((4, 5, 7), (2, 2, 2), (1, 2, 5)), (5, 1, 1), (0, 0, 2.8, 1, 4.8, 3),
            id="3d, the nearest voxel in steps is not the nearest in mm",
        ),
        pytest.param(
            np.ones((3, 3, 3), bool), mask_of((3, 3, 3), (1, 1, 1)), (3, 1, 1),
            (
                1 / 14, 1 / 27, sqrt(3), (6 + 12 * sqrt(2) + 8 * sqrt(3)) / 26,
                sqrt(11), (10 + 4 * sqrt(2) + 8 * sqrt(10) + 8 * sqrt(11)) / 26,
            ),
            id="3d, a cube that fills the array against its middle",
        ),
        pytest.param(
            np.ones((3, 3, 3), bool), mask_of((3, 3, 3), (1, 1, 1)), (2, 2, 2),
            (
                1 / 14, 1 / 27, sqrt(3), (6 + 12 * sqrt(2) + 8 * sqrt(3)) / 26,
                2 * sqrt(3), (6 + 12 * sqrt(2) + 8 * sqrt(3)) / 13,
            ),
            id="3d, equal steps of 2 mm",
        ),
    ],
)  # fmt: skip
def test_measures_are_those_computed_by_hand(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """Dice, Jaccard, 95HD and ASD in voxels, 95HD and ASD in mm."""
    assert ours(compute_measures(prediction, reference, spacing)) == pytest.approx(expected, rel=1e-12)


def test_the_border_of_a_mask_is_it_minus_its_erosion_by_the_face_neighbours() -> None:
    mask = np.random.default_rng(0).random((9, 8, 7)) < 0.8
    cross = ndimage.generate_binary_structure(3, 1)
    np.testing.assert_array_equal(border_mask(mask), mask & ~ndimage.binary_erosion(mask, cross))


def test_empty_space_around_the_masks_changes_nothing() -> None:
    random = np.random.default_rng(1)
    prediction, reference = random.random((2, 6, 7, 8)) < 0.4
    padded = compute_measures(np.pad(prediction, 9), np.pad(reference, 9), (2, 1, 1))
    assert padded == compute_measures(prediction, reference, (2, 1, 1))


def test_two_voxels_three_steps_apart_are_three_steps_and_six_millimetres_apart() -> None:
    prediction, reference = np.zeros((2, 1, 8), bool)
    prediction[0, 1] = reference[0, 4] = True
    assert ours(compute_measures(prediction, reference, (1, 2))) == (0, 0, 3, 3, 6, 6)


@pytest.mark.parametrize("unit", [1e-7, 1e7])
def test_millimetres_follow_the_unit_however_small_it_is(unit: float) -> None:
    """Distances along axes of other lengths, in voxels of nanometres and of kilometres."""
    masks = [np.zeros((9, 9), bool) for _ in range(2)]
    masks[0][1, 1] = masks[1][4, 7] = True
    expected = surface_distances(*masks, (1.0, 1.5))[2:]
    assert surface_distances(*masks, (unit, 1.5 * unit))[2:] == pytest.approx([unit * value for value in expected])


def test_asd_goes_from_prediction_to_reference() -> None:
    prediction, reference = np.zeros((2, 1, 8), bool)
    prediction[0, 0] = reference[0, [0, 6]] = True
    assert compute_measures(prediction, reference).asd_voxel == 0
    assert compute_measures(reference, prediction).asd_voxel == 3


def test_without_spacing_millimetres_are_nan_and_voxels_are_not() -> None:
    mask = np.ones((3, 3), bool)
    measures = compute_measures(mask, mask)
    assert math.isnan(measures.hd95_mm)
    assert math.isnan(measures.asd_mm)
    assert (measures.hd95_voxel, measures.asd_voxel) == (0, 0)


@pytest.mark.parametrize(("which", "sizes"), [(0, (0, 9)), (1, (9, 0))])
def test_one_empty_mask_has_overlap_zero_and_no_distance(which: int, sizes: tuple[int, int]) -> None:
    masks = [np.ones((3, 3), bool), np.ones((3, 3), bool)]
    masks[which] = np.zeros((3, 3), bool)
    measures = compute_measures(*masks, (1, 1))
    assert (measures.dice, measures.jaccard) == (0, 0)
    assert np.isnan(ours(measures)[2:]).all()
    assert (measures.prediction_voxels, measures.reference_voxels) == sizes


def test_two_empty_masks_have_no_measure_at_all() -> None:
    empty = np.zeros((3, 4, 5), bool)
    assert np.isnan(ours(compute_measures(empty, empty, (1, 1, 1)))).all()


def test_the_published_convention_turns_an_empty_prediction_into_zeros() -> None:
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert apply_literature_convention(compute_measures(empty, full, (1, 1))) == Measures(0, 0, 0, 0, 0, 0, 0, 9)
    assert apply_literature_convention(compute_measures(full, full, (1, 1))) == compute_measures(full, full, (1, 1))
    assert math.isnan(apply_literature_convention(compute_measures(full, empty, (1, 1))).hd95_mm)


def test_the_published_convention_counts_two_empty_masks_as_zeros_too() -> None:
    empty = np.zeros((3, 3), bool)
    assert apply_literature_convention(compute_measures(empty, empty, (1, 1))) == Measures(0, 0, 0, 0, 0, 0, 0, 0)


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        compute_measures(np.ones((2, 3), bool), np.ones((3, 2), bool))


def test_a_spacing_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="one spacing per axis"):
        compute_measures(np.ones((2, 3), bool), np.ones((2, 3), bool), (1, 1, 1))
