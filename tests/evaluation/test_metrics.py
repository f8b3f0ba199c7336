"""``metrics``: equal to MedPy on random and real masks, and defined for empty masks, which MedPy refuses."""

from __future__ import annotations

import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_crossmatch.evaluation.metrics import Measures, apply_literature_convention, border_mask, compute_measures

pytest.importorskip("medpy.metric.binary", reason="MedPy (extra 'test') is the oracle")
BENCHMARK_SPEC = spec_from_file_location("benchmark_metrics", Path(__file__).parents[2] / "benchmarks" / "metrics.py")
benchmark_metrics = module_from_spec(BENCHMARK_SPEC)
BENCHMARK_SPEC.loader.exec_module(benchmark_metrics)
TOLERANCE = 1e-9


def all_measures(measures: Measures) -> tuple[float, ...]:
    return (
        measures.dice, measures.jaccard, measures.hd95_voxel, measures.asd_voxel, measures.hd95_mm, measures.asd_mm
    )  # fmt: skip


def assert_equal_to_medpy(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> None:
    assert benchmark_metrics.difference_to_medpy(prediction, reference, spacing) <= TOLERANCE


def random_mask(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A single voxel, noise, or smooth objects; never empty, often touching the array's border."""
    kind = random.integers(3)
    mask = random.random(shape) < random.uniform(0.02, 0.9)
    if kind == 1:
        mask = ndimage.gaussian_filter(random.random(shape), 1.5, mode="wrap") > 0.5
    if kind == 0 or not mask.any():
        mask = np.zeros(shape, bool)
        mask[tuple(random.integers(shape))] = True
    return mask


@pytest.mark.parametrize("seed", range(30))
def test_ten_random_pairs_equal_medpy(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(10):
        shape = tuple(int(length) for length in random.integers(1, 15, size=random.integers(2, 4)))
        spacing = tuple(random.uniform(0.2, 8, len(shape))) if random.random() < 0.7 else (0.625,) * len(shape)
        assert_equal_to_medpy(random_mask(shape, random), random_mask(shape, random), spacing)


@pytest.mark.real_data
@pytest.mark.skipif(not benchmark_metrics.DATA.is_dir(), reason="real LA and ACDC volumes are absent")
def test_real_volumes_equal_medpy() -> None:
    """One LA volume and every 20th ACDC volume; ``benchmarks/metrics.py --check`` compares all of them."""
    largest, compared = benchmark_metrics.largest_difference_to_medpy(
        benchmark_metrics.real_masks(benchmark_metrics.DATA, la_step=10, acdc_step=20)
    )
    assert compared > 80
    assert largest <= TOLERANCE


def test_a_mask_that_fills_the_array_equals_medpy() -> None:
    full, corner = np.ones((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    corner[0, 0, 0] = True
    assert_equal_to_medpy(full, corner, (3.0, 1.0, 1.0))
    assert_equal_to_medpy(corner, full, (3.0, 1.0, 1.0))


def test_the_border_is_the_mask_minus_its_erosion() -> None:
    mask = np.random.default_rng(0).random((9, 8, 7)) < 0.8
    cross = ndimage.generate_binary_structure(3, 1)
    np.testing.assert_array_equal(border_mask(mask), mask & ~ndimage.binary_erosion(mask, cross))


def test_padding_with_background_changes_no_measure() -> None:
    random = np.random.default_rng(1)
    prediction, reference = random.random((2, 6, 7, 8)) < 0.4
    assert compute_measures(np.pad(prediction, 9), np.pad(reference, 9), (2, 1, 1)) == compute_measures(
        prediction, reference, (2, 1, 1)
    )


def test_two_voxels_at_three_steps_of_two_millimetres() -> None:
    prediction, reference = np.zeros((2, 1, 8), bool)
    prediction[0, 1] = reference[0, 4] = True
    assert all_measures(compute_measures(prediction, reference, (1, 2))) == (0, 0, 3, 3, 6, 6)


def test_asd_goes_from_prediction_to_reference() -> None:
    prediction, reference = np.zeros((2, 1, 8), bool)
    prediction[0, 0] = reference[0, [0, 6]] = True
    assert compute_measures(prediction, reference).asd_voxel == 0
    assert compute_measures(reference, prediction).asd_voxel == 3


def test_without_spacing_only_distances_in_millimetres_are_nan() -> None:
    mask = np.ones((3, 3), bool)
    measures = compute_measures(mask, mask)
    assert math.isnan(measures.hd95_mm)
    assert math.isnan(measures.asd_mm)
    assert (measures.hd95_voxel, measures.asd_voxel) == (0, 0)


@pytest.mark.parametrize(("which", "sizes"), [(0, (0, 9)), (1, (9, 0))])
def test_one_empty_mask_has_overlap_zero_and_undefined_distances(which: int, sizes: tuple[int, int]) -> None:
    masks = [np.ones((3, 3), bool), np.ones((3, 3), bool)]
    masks[which] = np.zeros((3, 3), bool)
    measures = compute_measures(*masks, (1, 1))
    assert (measures.dice, measures.jaccard) == (0, 0)
    assert np.isnan(all_measures(measures)[2:]).all()
    assert (measures.prediction_voxels, measures.reference_voxels) == sizes


def test_all_measures_of_two_empty_masks_are_undefined() -> None:
    empty = np.zeros((3, 4, 5), bool)
    assert np.isnan(all_measures(compute_measures(empty, empty, (1, 1, 1)))).all()


def test_the_literature_convention_sets_an_empty_prediction_to_zero() -> None:
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert apply_literature_convention(compute_measures(empty, full, (1, 1))) == Measures(0, 0, 0, 0, 0, 0, 0, 9)
    assert apply_literature_convention(compute_measures(full, full, (1, 1))) == compute_measures(full, full, (1, 1))
    assert math.isnan(apply_literature_convention(compute_measures(full, empty, (1, 1))).hd95_mm)


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        compute_measures(np.ones((2, 3), bool), np.ones((3, 2), bool))


def test_a_spacing_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="one spacing per axis"):
        compute_measures(np.ones((2, 3), bool), np.ones((2, 3), bool), (1, 1, 1))
