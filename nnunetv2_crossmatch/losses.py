"""The unsupervised losses: a table of (part, student, teacher, weight), and the masked soft Dice that a row computes.

Source: CrossMatch (JBHI 2024), Eq. 3, 10 to 12 and Algorithm 1. What differs from the paper: the Dice is masked by the
teacher's confidence voxel by voxel, and a step without any valid voxel is exactly 0.
Limit: compares given logits with given labels; where they come from is the business of ``streams``.
Shapes: N samples, C output channels, S spatial axes; labels and ``valid`` as in ``pseudo_labels``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional

from nnunetv2_crossmatch.pseudo_labels import PseudoLabel

SMOOTH = 1e-5


@dataclass(frozen=True)
class LossRow:
    """One comparison: ``student`` learns from the labels of ``teacher``.

    Attributes:
        part: the loss that the row belongs to and is reported under.
        weight: of the row within its part.
        factor: of the part within the unsupervised loss.
    """

    part: str
    student: str
    teacher: str
    weight: float
    factor: float


def loss_table(eta: float) -> tuple[LossRow, ...]:
    """The rows of CrossMatch: their sum is L_ip + (1 - eta) L_tkd + eta L_dkd (Eq. 12)."""
    image_level = [LossRow("ip", student, "wn", 1 / 2, 1) for student in ("s1", "s2")]
    from_teacher = [LossRow("tkd", student, "wn", 1 / 4, 1 - eta) for student in ("ww", "ws", "sw", "ss")]
    from_assistants = [LossRow("dkd", "sw", "ww", 1 / 2, eta), LossRow("dkd", "ss", "ws", 1 / 2, eta)]
    return (*image_level, *from_teacher, *from_assistants)


@dataclass(frozen=True)
class Criterion:
    """H of the loss table: masked soft Dice, optionally plus cross-entropy on the valid voxels.

    Attributes:
        regions: sigmoid per channel instead of softmax over channels.
        classes: channels that the Dice averages over.
        absent: "count" or "skip" a class without valid pseudo-labels.
        cross_entropy: add the mean cross-entropy of the valid voxels.
        temperature: logits are divided by it.
        distributed: sums run over all processes, as if their batches were one.
    """

    regions: bool
    classes: tuple[int, ...]
    absent: str = "count"
    cross_entropy: bool = False
    temperature: float = 1.0
    distributed: bool = False

    def __call__(self, logits: torch.Tensor, target: PseudoLabel) -> torch.Tensor:
        """Loss (scalar, float32 or better) of ``logits`` (N, C, S) against ``target``."""
        logits = (logits if logits.dtype == torch.float64 else logits.float()) / self.temperature
        loss = self.dice(logits, target)
        return loss + self.masked_cross_entropy(logits, target) if self.cross_entropy else loss

    def dice(self, logits: torch.Tensor, target: PseudoLabel) -> torch.Tensor:
        """1 - (2 sum p y + s) / (sum p^2 + sum y + s) over batch and valid voxels, averaged over the classes."""
        probability = torch.sigmoid(logits) if self.regions else torch.softmax(logits, dim=1)
        sums = self._total(torch.stack([self._sums(probability, target, channel) for channel in self.classes], dim=1))
        overlap, squares, volume = sums
        loss_per_class = 1 - (2 * overlap + SMOOTH) / (squares + volume + SMOOTH)
        if self.absent == "count":
            return loss_per_class.mean()
        present = volume > 0
        return (loss_per_class * present).sum() / present.sum().clamp(min=1)

    def masked_cross_entropy(self, logits: torch.Tensor, target: PseudoLabel) -> torch.Tensor:
        """Mean cross-entropy over the valid voxels (regions: binary, over those of all regions); 0 without any."""
        if self.regions:
            per_voxel = functional.binary_cross_entropy_with_logits(
                logits, target.labels.to(logits.dtype), reduction="none"
            )
        else:
            per_voxel = functional.cross_entropy(logits, target.labels, reduction="none")
        total = self._total(torch.stack([(per_voxel * target.valid).sum(), target.valid.sum().to(per_voxel.dtype)]))
        return total[0] / total[1].clamp(min=1)

    def _sums(self, probability: torch.Tensor, target: PseudoLabel, channel: int) -> torch.Tensor:
        """(sum p y, sum p^2, sum y) of one channel over its valid voxels, in one tensor of three."""
        label = target.labels[:, channel] if self.regions else target.labels == channel
        valid = target.valid[:, channel] if self.regions else target.valid
        p = probability[:, channel] * valid
        y = label & valid
        return torch.stack([(p * y).sum(), (p * p).sum(), y.sum().to(p.dtype)])

    def _total(self, sums: torch.Tensor) -> torch.Tensor:
        # DDP averages gradients; all_reduce sums both the values and, backwards, the gradients, so that the average is
        # the gradient of the loss on the joined batch.
        return all_reduce(sums) if self.distributed and dist.is_initialized() else sums


def dice_classes(choice: str, channels: int, regions: bool) -> tuple[int, ...]:
    """Channels of the Dice: every region; with softmax the foreground, all, or ("auto") all if there are several."""
    if regions or choice == "all" or (choice == "auto" and channels > 2):
        return tuple(range(channels))
    return tuple(range(1, channels))
