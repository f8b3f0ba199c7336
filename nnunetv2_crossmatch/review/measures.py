"""What a segmentation and its probabilities tell without a reference: volumes, components, borders, uncertainty.

Limit: arrays of one case; nothing here says whether the segmentation is right. Shapes: labels (z, y, x), probabilities
(C, z, y, x).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_crossmatch.evaluation.metrics import NAN, BoolArray, bounding_box
from nnunetv2_crossmatch.learning.consistency import entropy

AXES = "zyx"
BAND_STEPS = 2  # smallest voxel edges from the surface to either side
UNSURE_BELOW = 0.75  # a surface voxel is unsure if the probability of its label is less
NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
FEWEST_FOR_Z = 3


@dataclass(frozen=True)
class ClassMeasures:
    """One class of one case.

    Attributes:
        voxels: how many.
        components: connected ones, corners included.
        largest: share of the voxels in the largest component; NaN without any.
        borders: axes, of ``zyx``, at whose ends the class touches the border of the image.
    """

    voxels: int
    components: int
    largest: float
    borders: str


def measure_classes(labels: NDArray[Any], classes: Mapping[str, Sequence[int]]) -> dict[str, ClassMeasures]:
    """Measures of each class, given by its label values."""
    box = bounding_box(labels != 0)
    borders = {axis: labels.take((0, -1), i) for i, axis in enumerate(AXES) if labels.shape[i] > 1}

    def measure(values: Sequence[int]) -> ClassMeasures:
        sizes = component_sizes(np.isin(labels[box], values))
        touched = "".join(axis for axis, ends in borders.items() if np.isin(ends, values).any())
        count = sum(sizes)
        return ClassMeasures(count, len(sizes), max(sizes) / count if count else NAN, touched)

    return {name: measure(values) for name, values in classes.items()}


def component_sizes(mask: BoolArray) -> list[int]:
    """Voxels of each connected component; neighbours share a face, an edge or a corner."""
    found, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return np.bincount(found.ravel(), minlength=count + 1)[1:].tolist()


def robust_z(value: float, others: Iterable[float]) -> float:
    """``value`` minus the median of ``others``, over 1.4826 times their median absolute deviation.

    NaN for fewer than three others, or if at least half of them are equal and ``value`` is not.
    """
    known = np.array(list(others), dtype=np.float64)
    if len(known) < FEWEST_FOR_Z:
        return NAN
    difference, deviation = value - np.median(known), NORMAL_MAD * np.median(np.abs(known - np.median(known)))
    if not deviation:
        return NAN if difference else 0.0
    return float(difference / deviation)


def surface_band(labels: NDArray[Any], spacing: Sequence[float]) -> BoolArray:
    """Voxels within :data:`BAND_STEPS` smallest voxel edges of a place where the label changes.

    Along axes whose voxels are longer than that (thick slices) nothing is looked for.
    """
    steps = [round(BAND_STEPS * min(spacing) / size) for size in spacing]
    band = np.zeros(labels.shape, dtype=bool)
    for axis in (axis for axis, count in enumerate(steps) if count):
        before, after = (_shifted(axis, part) for part in (slice(None, -1), slice(1, None)))
        changes = labels[before] != labels[after]
        band[before] |= changes
        band[after] |= changes
    for axis, count in enumerate(steps):
        band = ndimage.maximum_filter1d(band, 2 * count - 1, axis, mode="constant") if count > 1 else band
    return band


def _shifted(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, part)


def surface_uncertainty(
    probabilities: NDArray[np.float32], labels: NDArray[Any], spacing: Sequence[float], regions: bool
) -> tuple[float, float]:
    """Mean entropy (0 to 1, of the largest possible one) and share of unsure voxels in the band around the surfaces.

    NaN if there is no surface. Regions: the mean over the regions, and the least sure region of each voxel.
    """
    p = torch.from_numpy(np.ascontiguousarray(probabilities[:, surface_band(labels, spacing)]))[None]
    if not p.numel():
        return NAN, NAN
    sure = torch.maximum(p, 1 - p).amin(1) if regions else p.amax(1)
    largest = math.log(2 if regions else p.shape[1])
    return float(entropy(p, regions).mean() / largest), float((sure < UNSURE_BELOW).float().mean())


def dice(first: NDArray[Any] | torch.Tensor, second: NDArray[Any] | torch.Tensor) -> float:
    """Dice of two boolean masks; NaN if both are empty."""
    sizes = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / sizes if sizes else NAN


def mean_of_defined(values: Iterable[float], none: float = NAN) -> float:
    """Mean of the values that are no NaN; ``none`` if there are not any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else none
