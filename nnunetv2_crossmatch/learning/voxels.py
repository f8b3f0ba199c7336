"""Single voxels by class: a bounded number of them, their features, and small networks that read these.

Their number does not depend on the labels, so that nothing is read back from the device; a mask says which are real.
Limit: knows features and masks; the methods say what voxels learn from each other.
Shapes: N images, F features, S spatial axes; K kinds: the classes with the background, or the regions; V voxels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, in_float

WIDTH = 32  # of the small networks, and of what they return; SS-Net's and CAML's released code


class Voxels(NamedTuple):
    """``rows`` (K, V, F), and which of them are real (K, V)."""

    rows: torch.Tensor
    real: torch.Tensor


def masks_by_kind(label: PseudoLabel, channels: int) -> torch.Tensor:
    """Valid voxels (N, K, S) of each class, background included, or of each region; ``channels``: outputs."""
    if label.labels.dtype == torch.bool:
        return label.labels & label.valid
    return torch.stack([(label.labels == value) & label.valid for value in range(channels)], 1)


def chosen(features: torch.Tensor, masks: torch.Tensor, scores: torch.Tensor, count: int) -> Voxels:
    """Features of the ``count`` voxels with the highest scores in each mask, fewer if the images have fewer voxels.

    Args:
        features: (N, F, S).
        masks: (N, K, S).
        scores: (N, 1 or K, S), not negative.
        count: for each kind.
    """
    ranked = scores.masked_fill(~masks, -1).movedim(1, 0).flatten(1)
    highest, places = ranked.topk(min(count, ranked.shape[1]))
    by_place, voxels = features.flatten(2), masks[0, 0].numel()
    return Voxels(by_place[places // voxels, :, places % voxels], highest >= 0)


def best(voxels: Voxels, scores: torch.Tensor, count: int) -> Voxels:
    """The ``count`` real voxels of each kind with the highest ``scores`` (K, V), not negative."""
    ranked, places = scores.masked_fill(~voxels.real, -1).topk(min(count, scores.shape[1]))
    rows = voxels.rows.gather(1, places[..., None].expand(*places.shape, voxels.rows.shape[2]))
    return Voxels(rows, ranked >= 0)


def perceptron(inputs: int, outputs: int = WIDTH) -> nn.Sequential:
    """Two layers. The normalization is over a voxel's features, not over the voxels: their number does not matter."""
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.LayerNorm(WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, outputs))


def shares(selectors: nn.ModuleList, rows: torch.Tensor) -> torch.Tensor:
    """How much each of ``rows`` (K, V, F) counts, 0 to 1, by the small network of its kind; (K, V)."""
    logits = [selector(one)[:, 0] for selector, one in zip(selectors, rows, strict=True)]
    return torch.sigmoid(in_float(torch.stack(logits)))
