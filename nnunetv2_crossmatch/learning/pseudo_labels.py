"""Pseudo-labels: hard labels of a network's logits, their confidence, and the voxels that count.

Limit: constant values without gradient; the losses compare students with them.
Shapes: N samples, C output channels, S spatial axes. Softmax: fields are (N, S). Regions: (N, C, S), each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nnunetv2_crossmatch.learning.cutmix import Box, paste


class PseudoLabel(NamedTuple):
    """Hard labels (int64 classes, or bool per region), their confidence in [0, 1] and ``valid`` = confidence >= tau."""

    labels: torch.Tensor
    confidence: torch.Tensor
    valid: torch.Tensor

    def cutmixed(self, boxes: Sequence[Box | None]) -> PseudoLabel:
        """The labels of the CutMixed image; confidence and ``valid`` move with the labels."""
        return PseudoLabel(*(paste(field, boxes) for field in self))


def pseudo_label(logits: torch.Tensor, tau: float, regions: bool) -> PseudoLabel:
    """Hard labels of ``logits`` (N, C, S), in float32 or better, without gradient.

    Softmax: argmax and max probability. Regions: sigmoid > 0.5 and max(p, 1 - p), for each region by itself.
    """
    logits = logits.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if regions:
        probability = torch.sigmoid(logits)
        labels = probability > 0.5
        confidence = torch.maximum(probability, 1 - probability)
    else:
        confidence, labels = torch.softmax(logits, dim=1).max(dim=1)
    return PseudoLabel(labels, confidence, confidence >= tau)
