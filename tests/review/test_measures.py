from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_crossmatch.review.measures import (
    ClassMeasures,
    dice,
    mean_of_defined,
    measure_classes,
    robust_z,
    surface_band,
    surface_uncertainty,
)


def labels_of_two_classes() -> np.ndarray:
    """Class 1: four voxels and, by a corner only, one more; and one apart. Class 2: at the end of x."""
    labels = np.zeros((4, 6, 8), np.uint8)
    labels[1, 1:3, 1:3] = 1
    labels[2, 3, 3] = 1
    labels[1, 4, 6] = 1
    labels[2, 2, 7] = 2
    return labels


def test_classes_by_hand():
    found = measure_classes(labels_of_two_classes(), {"a": (1,), "b": (2,), "both": (1, 2), "none": (3,)})
    assert found["a"] == ClassMeasures(6, 2, 5 / 6, "")
    assert found["b"] == ClassMeasures(1, 1, 1.0, "x")
    assert found["both"] == ClassMeasures(7, 3, 5 / 7, "x")
    assert (found["none"].voxels, found["none"].components, found["none"].borders) == (0, 0, "")
    assert math.isnan(found["none"].largest)


def test_a_single_slice_has_no_border_along_z():
    assert measure_classes(np.ones((1, 5, 5), np.uint8), {"a": (1,)})["a"].borders == "yx"


def test_no_label_at_all():
    assert measure_classes(np.zeros((3, 4, 5), np.uint8), {"a": (1,)})["a"].voxels == 0


@pytest.mark.parametrize(
    ("value", "others", "z"),
    [
        (13.0, [1, 2, 3, 4, 10], (13 - 3) / 1.4826),  # deviations 2 1 0 1 7, median 1
        (3.0, [3, 3, 3, 9], 0.0),
        (4.0, [3, 3, 3, 9], math.nan),
        (4.0, [3, 5], math.nan),
    ],
)
def test_robust_z_by_hand(value, others, z):
    assert robust_z(value, others) == pytest.approx(z, nan_ok=True)


def slow_band(labels: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """A voxel is in the band if some box of ``steps`` around it, from edge to edge, holds a change along these axes."""
    band = np.zeros(labels.shape, bool)
    changes = np.zeros(labels.shape, bool)
    for index in np.ndindex(labels.shape):
        for axis, count in enumerate(steps):
            for side in (-1, 1):
                other = list(index)
                other[axis] += side
                if count and 0 <= other[axis] < labels.shape[axis]:
                    changes[index] |= labels[tuple(other)] != labels[index]
    for index in np.argwhere(changes):
        band[tuple(slice(max(0, i - max(n - 1, 0)), i + max(n, 1)) for i, n in zip(index, steps, strict=True))] = True
    return band


@pytest.mark.parametrize(("spacing", "steps"), [((1, 1, 1), (2, 2, 2)), ((5, 1, 1), (0, 2, 2)), ((2, 1, 2), (1, 2, 1))])
def test_the_band_is_that_of_a_slow_statement(spacing, steps):
    noise = np.random.default_rng(0).normal(size=(7, 12, 12))
    labels = np.digitize(ndimage.gaussian_filter(noise, 2), (-0.05, 0.05)).astype(np.uint8)
    expected = slow_band(labels, steps)
    assert np.array_equal(surface_band(labels, spacing), expected)
    assert 0 < expected.mean() < 1


def test_uncertainty_of_classes_by_hand():
    """Of six voxels in a row the label changes in the middle; the band is the four in the middle."""
    labels = np.array([[[1, 1, 1, 0, 0, 0]]])
    foreground = np.array([1, 0.9, 0.7, 0.4, 0.2, 0], np.float32)
    entropy, unsure = surface_uncertainty(
        np.stack([1 - foreground, foreground])[:, None, None], labels, (1, 1, 1), False
    )
    parts = [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (0.9, 0.7, 0.4, 0.2)]
    assert entropy == pytest.approx(sum(parts) / 4, abs=1e-4)
    assert unsure == 0.5


def test_uncertainty_of_regions_by_hand():
    """The least sure region counts for a voxel's share, the mean of both for the entropy."""
    labels = np.array([[[1, 0]]])
    p = np.array([[0.9, 0.2], [0.6, 0.0]], np.float32)[:, None, None]
    entropy, unsure = surface_uncertainty(p, labels, (1, 1, 1), True)
    parts = [-q * math.log2(q) - (1 - q) * math.log2(1 - q) for q in (0.9, 0.2, 0.6)]
    assert entropy == pytest.approx(sum(parts) / 4, abs=1e-4)
    assert unsure == 0.5


def test_without_a_surface_nothing_is_uncertain():
    assert all(
        map(math.isnan, surface_uncertainty(np.ones((2, 2, 3, 3), np.float32), np.zeros((2, 3, 3)), (1, 1, 1), False))
    )


def test_dice_and_means():
    first, second = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(first, second) == pytest.approx(2 / 5)
    assert math.isnan(dice(first & False, second & False))
    assert mean_of_defined([1.0, math.nan, 2.0]) == 1.5
    assert mean_of_defined([math.nan], none=0.0) == 0.0
