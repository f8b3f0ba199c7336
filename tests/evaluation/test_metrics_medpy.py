"""metrics: equal to MedPy on random and on real masks; skipped where MedPy is not installed."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

pytest.importorskip("medpy.metric.binary", reason="MedPy (extra 'test') is the oracle")
SCRIPT = spec_from_file_location("benchmark_metrics", Path(__file__).parents[2] / "benchmarks" / "metrics.py")
benchmark = module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(benchmark)
TOLERANCE = 1e-9


def assert_equal_to_medpy(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> None:
    assert benchmark.difference_to_medpy(prediction, reference, spacing) <= TOLERANCE


def random_mask(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A single voxel, noise of some density, or smooth bodies; never empty, often touching the array's border."""
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
@pytest.mark.skipif(not benchmark.DATA.is_dir(), reason="real LA and ACDC volumes are absent")
def test_real_volumes_equal_medpy() -> None:
    """One LA volume, every 20th ACDC volume; ``benchmarks/metrics.py --check`` takes all of them."""
    largest, compared = benchmark.largest_difference_to_medpy(
        benchmark.real_masks(benchmark.DATA, la_step=10, acdc_step=20)
    )
    assert compared > 80
    assert largest <= TOLERANCE


def test_a_mask_that_fills_the_array_equals_medpy() -> None:
    full, corner = np.ones((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    corner[0, 0, 0] = True
    assert_equal_to_medpy(full, corner, (3.0, 1.0, 1.0))
    assert_equal_to_medpy(corner, full, (3.0, 1.0, 1.0))
