"""CutMix inside a batch: boxes are drawn first as plain values, pasting them is deterministic.

Limit: knows arrays and boxes, not views or losses; which tensors share a box is the caller's choice.
Shapes: B labeled samples, U unlabeled ones, C channels, S spatial axes (two or three).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

VOLUME_SHARE = (0.02, 0.4)  # of the patch; as in UniMatch and the authors' released code
ASPECT_RATIO = (0.3, 1 / 0.3)  # of any two box edges, each measured in edges of the patch
MAX_DRAWS = 10_000

Box = tuple[slice, ...]


def draw_box(rng: np.random.Generator, patch_size: Sequence[int]) -> Box:
    """Draw one whole box: its share of the patch is in VOLUME_SHARE, the ratio of its edges in ASPECT_RATIO.

    Edges are measured in edges of the patch, so that anisotropic patches get boxes of their own shape.

    Raises:
        ValueError: the patch has so few voxels that no box meets the ranges.
    """
    size = np.asarray(patch_size)
    half_range = np.log(ASPECT_RATIO[1]) / 2
    for _ in range(MAX_DRAWS):
        log_ratio = rng.uniform(-half_range, half_range, len(size))
        share = rng.uniform(*VOLUME_SHARE)
        edges = np.exp(log_ratio - log_ratio.mean()) * share ** (1 / len(size))
        box = np.maximum(np.rint(edges * size), 1).astype(int)
        if (box <= size).all() and VOLUME_SHARE[0] <= box.prod() / size.prod() <= VOLUME_SHARE[1]:
            start = rng.integers(0, size - box + 1)
            return tuple(slice(int(a), int(a + b)) for a, b in zip(start, box, strict=True))
    raise ValueError(f"no CutMix box fits into a patch of {tuple(patch_size)} voxels")


def draw_boxes(
    rng: np.random.Generator, samples: int, patch_size: Sequence[int], probability: float
) -> list[Box | None]:
    """Draw a box for each of ``samples`` with ``probability``; a single sample has no partner and gets none."""
    if samples < 2:
        return [None] * samples
    return [draw_box(rng, patch_size) if rng.random() < probability else None for _ in range(samples)]


def draw_donors(
    rng: np.random.Generator, boxes: Sequence[Box | None], labeled: int, probability: float
) -> list[int | None]:
    """Where each box comes from: one of ``labeled`` samples, with ``probability``, or None, the next unlabeled one."""
    chosen = [box is not None and rng.random() < probability for box in boxes]
    return [int(rng.integers(labeled)) if each else None for each in chosen]


def paste(
    tensor: torch.Tensor,
    boxes: Sequence[Box | None],
    labeled: torch.Tensor | None = None,
    donors: Sequence[int | None] = (),
) -> torch.Tensor:
    """Copy of ``tensor`` (U, ..., S) with the box of each sample pasted in.

    It comes from the ``labeled`` sample (B, ..., S) that ``donors`` names, or from sample (u + 1) mod U. Every source
    is the tensor as it came in, so chains of pasted samples do not depend on their order.
    """
    mixed = tensor.clone()
    for sample, (box, donor) in enumerate(zip_longest(boxes, donors)):
        if box is not None:
            inside: Any = (..., *box)
            source = tensor[(sample + 1) % len(tensor)] if donor is None or labeled is None else labeled[donor]
            mixed[sample][inside] = source[inside]
    return mixed
