"""Flips and quarter turns of single samples: drawn first as plain values, applied to images and labels alike.

Voxels move along the axes of the patch, nothing is interpolated. Limit: knows arrays, not views or losses.
Shapes: U samples, C channels, S spatial axes (two or three).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

EQUAL_SPACING = 0.01  # relative difference up to which voxels are as long along two axes


class Orientation(NamedTuple):
    """Axes that are flipped, then ``turns`` quarter turns in ``plane``; axes count from the last one, which is -1."""

    flipped: tuple[int, ...]
    turns: int
    plane: tuple[int, int]


def turning_planes(patch_size: Sequence[int], spacing: Sequence[float]) -> list[tuple[int, int]]:
    """Planes in which a quarter turn maps the patch onto itself: along both axes as many voxels, of one length."""
    return [
        (a, b)
        for a, b in combinations(range(-len(patch_size), 0), 2)
        if patch_size[a] == patch_size[b] and np.isclose(spacing[a], spacing[b], rtol=EQUAL_SPACING, atol=0)
    ]


def draw_orientations(
    rng: np.random.Generator, samples: int, patch_size: Sequence[int], spacing: Sequence[float]
) -> list[Orientation]:
    """For each sample: each axis flipped or not, 0 to 3 quarter turns in one of the planes that allow them."""
    planes = turning_planes(patch_size, spacing)
    return [_draw(rng, len(patch_size), planes) for _ in range(samples)]


def _draw(rng: np.random.Generator, axes: int, planes: Sequence[tuple[int, int]]) -> Orientation:
    flipped = tuple(axis for axis in range(-axes, 0) if rng.random() < 0.5)
    if not planes:
        return Orientation(flipped, 0, (-2, -1))
    return Orientation(flipped, int(rng.integers(4)), planes[int(rng.integers(len(planes)))])


def oriented(tensor: torch.Tensor, orientations: Sequence[Orientation]) -> torch.Tensor:
    """Copy of ``tensor`` (U, ..., S) with each sample in its orientation."""
    turned = [
        torch.rot90(sample.flip(each.flipped), each.turns, each.plane)
        for sample, each in zip(tensor, orientations, strict=True)
    ]
    return torch.stack(turned)
