"""Pseudo-labels: hard labels of a network's logits, their confidence, and the voxels that count.

Limit: labels are constant values without gradient; the losses compare students with them.
Shapes: N samples, C output channels, S spatial axes. Softmax: fields are (N, S). Regions: (N, C, S), each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch

from nnunetv2_crossmatch.learning.cutmix import Box, paste
from nnunetv2_crossmatch.learning.orientation import Orientation, oriented


class PseudoLabel(NamedTuple):
    """Hard labels (uint8 classes, or bool per region), their confidence in [0, 1] and ``valid`` = confidence >= tau.

    ``soft``: probabilities (N, C, S) that students learn instead of the hard labels, or None.
    """

    labels: torch.Tensor
    confidence: torch.Tensor
    valid: torch.Tensor
    soft: torch.Tensor | None = None

    def foreground_shares(self, channels: int) -> list[torch.Tensor]:
        """Share of the voxels that have each region, or each class but the background, of ``channels`` outputs."""
        if self.labels.dtype == torch.bool:
            return [self.labels[:, region].float().mean() for region in range(channels)]
        return [(self.labels == value).float().mean() for value in range(1, channels)]

    def cutmixed(
        self, boxes: Sequence[Box | None], labeled: PseudoLabel | None = None, donors: Sequence[int | None] = ()
    ) -> PseudoLabel:
        """The labels of the CutMixed image; confidence and ``valid`` move with the labels."""
        others = labeled._asdict() if labeled else {}
        return self._replace(
            **{name: paste(field, boxes, others.get(name), donors) for name, field in self._present().items()}
        )

    def oriented(self, orientations: Sequence[Orientation]) -> PseudoLabel:
        """The labels of the image in that orientation."""
        return self._replace(**{name: oriented(field, orientations) for name, field in self._present().items()})

    def for_students(self) -> PseudoLabel:
        """Without the confidence (None), which no student reads, so that it need not be moved with the rest."""
        return self._replace(confidence=cast(torch.Tensor, None))

    def _present(self) -> dict[str, torch.Tensor]:
        return {name: field for name, field in self._asdict().items() if field is not None}


def in_float(logits: torch.Tensor) -> torch.Tensor:
    """``logits`` in float32 or better: logarithms and powers of half-precision values are worthless."""
    return logits if logits.dtype == torch.float64 else logits.float()


def distribution(logits: torch.Tensor, regions: bool) -> torch.Tensor:
    """Softmax over the channels, or a sigmoid of each region, of ``logits`` (N, C, S), in float32 or better."""
    logits = in_float(logits)
    return torch.sigmoid(logits) if regions else torch.softmax(logits, dim=1)


def probabilities(logits: torch.Tensor, regions: bool) -> torch.Tensor:
    """:func:`distribution` without gradient."""
    return distribution(logits.detach(), regions)


def label_of(probability: torch.Tensor, tau: float, regions: bool) -> PseudoLabel:
    """Hard labels of ``probability`` (N, C, S).

    Softmax: argmax and max probability. Regions: p > 0.5 and max(p, 1 - p), for each region by itself.
    """
    if regions:
        labels, confidence = probability > 0.5, torch.maximum(probability, 1 - probability)
    else:
        confidence, found = probability.max(dim=1)
        labels = found.to(integer_type(probability.shape[1]))
    return PseudoLabel(labels, confidence, confidence >= tau)


def integer_type(channels: int) -> torch.dtype:
    """Of class labels, which the losses read once for each class and row: one byte where that is enough."""
    return torch.uint8 if channels <= 256 else torch.int64


def reference_label(target: torch.Tensor, channels: int, regions: bool) -> PseudoLabel:
    """The labels of labeled images in the form of pseudo-labels: sure, and valid wherever they are not ignored.

    Args:
        target: as the host's loss takes it, (B, 1, S) with the value ``channels`` for ignored voxels, or
            (B, ``channels``, S) regions, then a channel of ignored voxels if there are any.
        channels: outputs of the network.
        regions: whether they are regions.
    """
    if regions:
        labels = target[:, :channels] > 0
        valid = (target[:, channels:] == 0).all(1, keepdim=True).expand_as(labels)
    else:
        labels = target[:, 0].long()
        valid = labels < channels
        labels = (labels * valid).to(integer_type(channels))
    return PseudoLabel(labels, torch.ones_like(labels, dtype=torch.float32), valid)
