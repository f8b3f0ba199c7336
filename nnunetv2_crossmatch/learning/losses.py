"""The distance of a student from a pseudo-label: masked soft Dice, optionally plus cross-entropy.

Source: CrossMatch (JBHI 2024), Eq. 3. What differs from the paper: the Dice is masked by the teacher's confidence voxel
by voxel, and a step without any valid voxel is exactly 0.
Limit: compares given logits with given labels; ``unsupervised`` says which are compared.
Shapes: N samples, C output channels, S spatial axes; labels and ``valid`` as in ``pseudo_labels``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nnunetv2_crossmatch.learning.exchange import joined_sum
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel

SMOOTH = 1e-5


class MaskedSums(torch.autograd.Function):
    """(sum p y, sum p^2, sum y) over the valid voxels, (3, number of ``classes``), differentiable in p.

    Autograd would hold each channel's masked copies and products until the backward pass; the gradient needs none of
    them: it is valid * (y dL/d(sum p y) + 2 p dL/d(sum p^2)).
    """

    @staticmethod
    def forward(
        ctx: Any,
        probability: torch.Tensor,
        labels: torch.Tensor,
        valid: torch.Tensor,
        classes: tuple[int, ...],
        compiled: bool,
    ) -> torch.Tensor:
        """Sums of ``probability`` (N, C, S); ``labels`` and ``valid`` as in ``pseudo_labels``."""
        ctx.save_for_backward(probability, labels, valid)
        ctx.classes, ctx.compiled = classes, compiled
        return _as_asked(masked_sums, compiled)(probability, labels, valid, classes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient in ``probability``; classes that are not summed have none."""
        result = _as_asked(gradient_of_sums, ctx.compiled)(*ctx.saved_tensors, gradient, ctx.classes)
        return result, None, None, None, None


def masked_sums(
    probability: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor, classes: tuple[int, ...]
) -> torch.Tensor:
    """The values of :class:`MaskedSums`."""
    sums = []
    for channel in classes:
        y, counts = _of_channel(labels, valid, probability, channel)
        p = probability[:, channel] * counts
        sums += [(p * y).sum(), p.square_().sum(), (y & counts).sum().to(p.dtype)]
    return torch.stack(sums).unflatten(0, (-1, 3)).T


def gradient_of_sums(
    probability: torch.Tensor,
    labels: torch.Tensor,
    valid: torch.Tensor,
    gradient: torch.Tensor,
    classes: tuple[int, ...],
) -> torch.Tensor:
    """The gradient of :class:`MaskedSums` in ``probability`` (N, C, S), given that of the sums."""
    result = torch.zeros_like(probability)
    for channel, (overlap, squares, _) in zip(classes, gradient.T, strict=True):
        y, counts = _of_channel(labels, valid, probability, channel)
        own = result[:, channel]
        own.copy_(y).mul_(overlap).addcmul_(probability[:, channel], 2 * squares).mul_(counts)
    return result


def _as_asked(function: Callable[..., torch.Tensor], compiled: bool) -> Callable[..., torch.Tensor]:
    return _compiled(function) if compiled else function


@cache
def _compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """One kernel in place of a dozen for each class."""
    return torch.compile(function)


def _of_channel(
    labels: torch.Tensor, valid: torch.Tensor, probability: torch.Tensor, channel: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which voxels (N, S) have the class or region of ``channel``, and which count for it."""
    by_region = labels.ndim == probability.ndim
    return (labels[:, channel], valid[:, channel]) if by_region else (labels == channel, valid)


def soft_sums(
    probability: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor, classes: tuple[int, ...]
) -> torch.Tensor:
    """(sum p y, sum p^2, sum y^2) over the valid voxels, (3, number of ``classes``), of soft labels y (N, C, S)."""
    counts = valid if valid.ndim == probability.ndim else valid[:, None].expand_as(probability)
    p, y = (probability * counts)[:, classes], (wanted * counts)[:, classes]
    axes = (0, *range(2, p.ndim))
    return torch.stack([(p * y).sum(axes), p.square().sum(axes), y.square().sum(axes)])


@dataclass(frozen=True)
class Criterion:
    """H of a loss row: masked soft Dice, optionally plus cross-entropy on the valid voxels.

    Attributes:
        regions: sigmoid per channel instead of softmax over channels.
        classes: channels that the Dice averages over.
        absent: "count" or "skip" a class without valid pseudo-labels.
        cross_entropy: add the mean cross-entropy of the valid voxels.
        temperature: logits are divided by it.
        distributed: sums run over all processes, as if their batches were one.
        compiled: sums and their gradients by ``torch.compile``.
    """

    regions: bool
    classes: tuple[int, ...]
    absent: str = "count"
    cross_entropy: bool = False
    temperature: float = 1.0
    distributed: bool = False
    compiled: bool = False

    def __call__(self, logits: torch.Tensor, target: PseudoLabel) -> torch.Tensor:
        """Loss (scalar, float32 or better) of ``logits`` (N, C, S) against ``target``."""
        return self.each(logits, [target])[0]

    def each(self, logits: torch.Tensor, targets: Sequence[PseudoLabel]) -> list[torch.Tensor]:
        """Losses against each of ``targets``; the probabilities are computed once."""
        logits = (logits if logits.dtype == torch.float64 else logits.float()) / self.temperature
        probability = torch.sigmoid(logits) if self.regions else torch.softmax(logits, dim=1)
        losses = [self.dice(probability, target) for target in targets]
        if not self.cross_entropy:
            return losses
        return [loss + self.masked_cross_entropy(logits, target) for loss, target in zip(losses, targets, strict=True)]

    def dice(self, probability: torch.Tensor, target: PseudoLabel) -> torch.Tensor:
        """1 - (2 sum p y + s) / (sum p^2 + sum y^2 + s) over batch and valid voxels, averaged over the classes."""
        if target.soft is None:
            sums = MaskedSums.apply(probability, target.labels, target.valid, self.classes, self.compiled)
        else:
            sums = soft_sums(probability, target.soft, target.valid, self.classes)
        overlap, squares, volume = self._total(sums)
        loss_per_class = 1 - (2 * overlap + SMOOTH) / (squares + volume + SMOOTH)
        if self.absent == "count":
            return loss_per_class.mean()
        present = volume > 0
        return (loss_per_class * present).sum() / present.sum().clamp(min=1)

    def masked_cross_entropy(self, logits: torch.Tensor, target: PseudoLabel) -> torch.Tensor:
        """Mean cross-entropy over the valid voxels (regions: binary, over those of all regions); 0 without any."""
        wanted = target.labels if target.soft is None else target.soft.to(logits.dtype)
        if self.regions:
            per_voxel = functional.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none")
        else:
            wanted = wanted if wanted.is_floating_point() else wanted.long()
            per_voxel = functional.cross_entropy(logits, wanted, reduction="none")
        total = self._total(torch.stack([(per_voxel * target.valid).sum(), target.valid.sum().to(per_voxel.dtype)]))
        return total[0] / total[1].clamp(min=1)

    def _total(self, sums: torch.Tensor) -> torch.Tensor:
        return joined_sum(sums, self.distributed)


def dice_classes(choice: str, channels: int, regions: bool) -> tuple[int, ...]:
    """Channels of the Dice: every region; with softmax the foreground, all, or ("auto") all if there are several."""
    if regions or choice == "all" or (choice == "auto" and channels > 2):
        return tuple(range(channels))
    return tuple(range(1, channels))
