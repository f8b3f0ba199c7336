"""Overlap and surface distances between two binary masks, from one nearest-neighbour search per direction.

Limit: two masks of one structure on one grid. ``evaluate`` handles labels and files, ``scores`` averages over cases.
The definitions are those of the LA and ACDC literature; ``docs/correctness.md`` states them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

OVERLAP_MEASURES = ("dice", "jaccard")
VOXEL_DISTANCE_MEASURES = ("hd95_voxel", "asd_voxel")
MM_DISTANCE_MEASURES = ("hd95_mm", "asd_mm")
NAN = float("nan")


@dataclass(frozen=True)
class Measures:
    """Measures of a prediction against a reference; an undefined measure is NaN.

    Overlaps range from 0 to 1. Distances with the suffix ``_voxel`` are in grid steps, those with ``_mm`` in
    millimetres (NaN without spacing). ``hd95`` is symmetric, ``asd`` is measured from prediction to reference.
    """

    dice: float
    jaccard: float
    hd95_voxel: float
    asd_voxel: float
    hd95_mm: float
    asd_mm: float
    prediction_voxels: int
    reference_voxels: int


def compute_measures(
    prediction: BoolArray, reference: BoolArray, spacing_mm: Sequence[float] | None = None
) -> Measures:
    """All measures of one structure.

    Args:
        prediction: boolean mask, any number of axes.
        reference: boolean mask of the same shape.
        spacing_mm: voxel size along each axis, in the order of the axes; None leaves the distances in mm NaN.

    Returns:
        Overlaps are NaN if both masks are empty, distances if at least one is.

    Raises:
        ValueError: the shapes differ, or the length of ``spacing_mm`` is not the number of axes.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"masks of one shape expected, got {prediction.shape} and {reference.shape}")
    if spacing_mm is not None and len(spacing_mm) != prediction.ndim:
        raise ValueError(f"one spacing per axis expected ({prediction.ndim}), got {tuple(spacing_mm)}")
    box = bounding_box(prediction | reference)
    prediction, reference = prediction[box], reference[box]
    sizes = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    intersection = int(np.count_nonzero(prediction & reference))
    dice = 2 * intersection / sum(sizes) if sum(sizes) else NAN
    jaccard = intersection / (sum(sizes) - intersection) if sum(sizes) else NAN
    distances = surface_distances(prediction, reference, spacing_mm) if all(sizes) else (NAN,) * 4
    return Measures(dice, jaccard, *distances, *sizes)


def apply_literature_convention(measures: Measures) -> Measures:
    """``measures`` as the published LA and ACDC tables count them: every measure of an empty prediction is 0.

    A distance of 0 for a missed structure is misleading; use this only for comparison with those tables.
    """
    if measures.prediction_voxels:
        return measures
    return Measures(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, measures.reference_voxels)


def bounding_box(mask: BoolArray, margin: int = 1) -> tuple[slice, ...]:
    """Smallest box around the true voxels, extended by ``margin`` voxels within the array; empty for an empty mask.

    Measures of two masks need only the box of their union: it contains all border voxels of both.
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask[tuple(box)].any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(int(found[0]) - margin, 0), int(found[-1]) + 1 + margin) if found.size else slice(0, 0))
    return tuple(box)


def border_mask(mask: BoolArray) -> BoolArray:
    """Voxels of ``mask`` with a face neighbour (6 in 3d, 4 in 2d) outside of it; beyond the array all is outside."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for neighbours in (slice(None, -2), slice(2, None)):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = neighbours
            inside &= padded[tuple(window)]
    return mask & ~inside


def surface_distances(
    prediction: BoolArray, reference: BoolArray, spacing_mm: Sequence[float] | None
) -> tuple[float, float, float, float]:
    """95HD and ASD in voxels, then both in mm (NaN without spacing); neither mask may be empty."""
    borders = np.argwhere(border_mask(prediction)), np.argwhere(border_mask(reference))
    voxel = hd95_and_asd(*directed_distances(*borders, np.ones(prediction.ndim)))
    if spacing_mm is None:
        return (*voxel, NAN, NAN)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if np.ptp(spacing) <= 1e-12 * spacing.max():
        step = float(spacing[0])
        return (*voxel, voxel[0] * step, voxel[1] * step)
    return (*voxel, *hd95_and_asd(*directed_distances(*borders, spacing)))


def directed_distances(
    prediction: NDArray[np.int64], reference: NDArray[np.int64], spacing: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Distance of each border voxel to the nearest one of the other border: prediction to reference, then the reverse.

    Borders are index lists (voxel, axis). Distances are needed at border voxels only, so a k-d tree over them is exact
    and faster than the distance transform of the box, for organs, noise and whole scans (``benchmarks/metrics.py``).
    """
    points = prediction * spacing, reference * spacing
    # Voxel centres are spread evenly: balancing the tree costs more time than it saves.
    trees = [KDTree(border, leafsize=16, compact_nodes=False, balanced_tree=False) for border in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def hd95_and_asd(to_reference: FloatArray, to_prediction: FloatArray) -> tuple[float, float]:
    """95th percentile of all distances of both directions (linear interpolation), and mean of the first direction."""
    pooled = np.concatenate((to_reference, to_prediction))
    return float(np.percentile(pooled, 95)), float(to_reference.mean())
