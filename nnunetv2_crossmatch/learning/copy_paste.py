"""Labeled and unlabeled images pasted into each other: the box, the pairs, and labels at the scale of a head.

Source: BCP (CVPR 2023). Limit: knows arrays; the method says what the parts learn.
Shapes: B labeled and U unlabeled samples, n pairs of them, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from nnunetv2_crossmatch.learning.cutmix import Box
from nnunetv2_crossmatch.learning.joint import resized

EDGE = 2 / 3  # of the box, in edges of the patch


class Mixture(NamedTuple):
    """Voxels (n, 1, S) that come from the unlabeled image; ``inward`` (n, 1, ...): whether these are the box."""

    unlabeled: torch.Tensor
    inward: torch.Tensor

    def of(self, labeled: torch.Tensor, unlabeled: torch.Tensor) -> torch.Tensor:
        """Mixed samples (n, ..., S) of (B, ..., S) and (U, ..., S); pair i takes the samples i modulo B and U."""
        where = self.unlabeled if labeled.ndim == self.unlabeled.ndim else self.unlabeled[:, 0]
        pairs = torch.arange(len(where), device=where.device)
        return torch.where(where, unlabeled[pairs % len(unlabeled)], labeled[pairs % len(labeled)])


def mixture(inside: torch.Tensor, pairs: int, first: int) -> Mixture:
    """Of a box (S): every other pair is inward, counted from ``first``."""
    number = torch.arange(first, first + pairs, device=inside.device)
    inward = (number % 2 == 0).view(-1, *[1] * (inside.ndim + 1))
    return Mixture(inside == inward, inward)


def draw_box(rng: np.random.Generator, patch_size: Sequence[int]) -> Box:
    """A box with :data:`EDGE` of every edge, anywhere in the patch."""
    size = np.asarray(patch_size)
    edges = np.maximum((size * EDGE).astype(int), 1)
    start = rng.integers(0, size - edges + 1)
    return tuple(slice(int(a), int(a + b)) for a, b in zip(start, edges, strict=True))


def at_scale(values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``values`` (n, S) or (n, C, S) at the resolution of ``logits``, with an axis of channels."""
    values = values if values.ndim == logits.ndim else values[:, None]
    return resized(values, logits).to(values.dtype)


def weighted(heads: list[torch.Tensor]) -> list[tuple[float, torch.Tensor]]:
    """Heads and their weights as in the host: half for each lower one, none for the lowest."""
    used = heads[:-1] or heads
    weights = [0.5**scale for scale in range(len(used))]
    return [(weight / sum(weights), head) for weight, head in zip(weights, used, strict=True)]
