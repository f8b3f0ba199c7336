"""CAML (Gao et al., MICCAI 2023): two branches, one with attention among images, agree on labels and on likeness.

A voxel is like some voxels of the bank, which hold features of labeled images; both branches must find the same ones.
Limit: what differs from MC-Net, whose distance of predictions it has; prediction uses the branch without attention.
Shapes: N images, S spatial axes, K kinds, V voxels; as in ``learning.voxels``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.learning.attention import CrossSampleAttention, attention_level
from nnunetv2_crossmatch.learning.auxiliary_decoder import upsampling
from nnunetv2_crossmatch.learning.exchange import joined_sum
from nnunetv2_crossmatch.learning.feature_bank import FeatureBank, bank_rows
from nnunetv2_crossmatch.learning.pseudo_labels import distribution, in_float, label_of, reference_label
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK
from nnunetv2_crossmatch.learning.voxels import WIDTH, Voxels, chosen, masks_by_kind, perceptron
from nnunetv2_crossmatch.methods.consistency import Parts
from nnunetv2_crossmatch.methods.mcnet import MCNet, MCNetSettings
from nnunetv2_crossmatch.methods.method import Optimizer, Passes
from nnunetv2_crossmatch.methods.settings import OURS, redefined, setting

PAPER = "CAML (MICCAI 2023)"
VOXELS = 2048  # of all kinds that are compared with the bank in a step
DRAWN = 64  # of each kind that enter the bank in a step


@dataclass(frozen=True)
class CAMLSettings(MCNetSettings):
    """All settings of a CAML run."""

    trainer: ClassVar[str] = "nnUNetTrainerCAML"

    unsupervised: float = redefined(MCNetSettings, "unsupervised", 2.0, PAPER)
    warmup: float = redefined(MCNetSettings, "warmup", 0.4, PAPER)
    correlation: float = setting(
        0.05, "correlation", "weight of the likeness to the bank beside the agreement of the predictions", PAPER, low=0
    )
    bank: float = setting(0.5, "bank", "size of the bank in MB, on the device and in the checkpoint", OURS, low=0)


class CAML(MCNet):
    """A second network with attention and interpolation, small networks that read features, and a bank of features."""

    Settings: ClassVar[Any] = CAMLSettings
    settings: CAMLSettings
    summary = "a second network that attends to all images of the batch agrees on labels and on the likeness of voxels"
    presets: ClassVar = {
        # The authors' released code: 15 000 iterations, batch 2 + 2, risen at 6000 (4 labels); u as in MC-Net.
        "LA": {"epochs": 60, "optimizer": "sgd", "batch": 2, "unlabeled_batch": 2},
    }

    @classmethod
    def problems(cls, settings: Any, task: Task) -> list[Problem]:
        """As inherited, batches of one image, and a bank without room for a row."""
        problems, where = super().problems(settings, task), settings.trainer_name
        if 1 in (settings.batch, settings.unlabeled_batch):
            detail = "CAML's second network attends from one image of a batch to the others"
            problems.append(Problem("batch too small", where, detail, "use batch2 and ubatch2, or more"))
        if not bank_rows(settings.bank, task.channels):
            detail = f"{settings.bank} MB hold no row of {task.channels} kinds of {WIDTH} numbers"
            problems.append(Problem("bank too small", where, detail, "use bank0p5"))
        return problems

    def build(self, network: Any, another: Callable[[], nn.Module]) -> None:
        """Add the second network, the small ones and the empty bank.

        Raises:
            UnsupportedError: the coarsest features have too many places for attention.
        """
        branch: Any = another()
        level, encoder = attention_level(network, self.task.patch_size), branch.encoder
        attention = CrossSampleAttention(encoder.output_channels[level])
        encoder.stages[level] = nn.Sequential(encoder.stages[level], attention)
        branch.decoder.transpconvs = nn.ModuleList(upsampling(each, "linear") for each in branch.decoder.transpconvs)
        self.branch, inputs = branch, network.decoder.seg_layers[-1].in_channels
        self.projections = nn.ModuleList(perceptron(inputs) for _ in range(2))
        self.predictions = nn.ModuleList(perceptron(WIDTH) for _ in range(2))
        self.bank = FeatureBank(self.task.channels, bank_rows(self.settings.bank, self.task.channels))
        self.right: Voxels | None = None

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """One optimizer of them all."""
        return [default(self)]

    def parts(self, step: Step) -> Parts:
        """Supervised losses of both, the distance of their predictions, and that of their likenesses to the bank."""
        labeled = len(step.images[LABELED])
        images = torch.cat([step.images[LABELED], step.images[WEAK]])
        supervised, every, lasts = {}, [], []
        for name, network in (("sup", step.network), ("sup_branch", self.branch)):
            heads, last = network(images, mode="heads_and_last", labeled_rows=labeled)
            supervised[name] = step.supervised(step.network.for_host([heads[0][:labeled], *heads[1:]]))
            every.append(distribution(heads[0], self.task.regions))
            lasts.append(last)
        agreed = self.agreed(every)
        self.right = self.right_voxels(lasts, agreed[:labeled], step)
        surest = torch.stack(every).detach().mean(0)[labeled:]
        compared = [chosen(last[labeled:], agreed[labeled:], surest, self.voxels) for last in lasts]
        unsupervised = self.distance(every) + self.settings.correlation * self.unlike(compared, step.distributed)
        return Parts(supervised, unsupervised, every[0][labeled:])

    @property
    def voxels(self) -> int:
        """Of each kind that are compared with the bank."""
        return max(1, VOXELS // self.task.channels)

    def agreed(self, probabilities: list[torch.Tensor]) -> torch.Tensor:
        """Voxels (N, K, S) of each kind by both branches."""
        labels = [label_of(each.detach(), 0.0, self.task.regions) for each in probabilities]
        first, second = (masks_by_kind(label, self.task.channels) for label in labels)
        return first & second

    @torch.no_grad()
    def right_voxels(self, lasts: list[torch.Tensor], agreed: torch.Tensor, step: Step) -> Voxels:
        """Means of both projections of some voxels of labeled images that both branches label rightly."""
        labeled, channels = len(agreed), self.task.channels
        right = agreed & masks_by_kind(reference_label(step.full_target, channels, self.task.regions), channels)
        scores = torch.rand(agreed[:, :1].shape, generator=step.generator, device=agreed.device)
        voxels = [chosen(last[:labeled], right, scores, DRAWN) for last in lasts]
        rows = [in_float(own(each.rows)) for own, each in zip(self.projections, voxels, strict=True)]
        return Voxels(torch.stack(rows).mean(0), voxels[0].real)

    def unlike(self, compared: list[Voxels], distributed: bool) -> torch.Tensor:
        """Cross-entropy of both branches' likenesses to the rows of the bank, over the compared voxels; 0 without."""
        pairs = zip(self.projections, self.predictions, compared, strict=True)
        first, second = (self.bank(predict(project(each.rows))) for project, predict, each in pairs)
        weights = compared[0].real.flatten() * self.bank.filled.any()
        entropy = -(second * torch.log(first + 1e-8)).sum(1)
        total, count = joined_sum(torch.stack([(entropy * weights).sum(), weights.sum().to(entropy)]), distributed)
        return total / count.clamp(min=1)

    def after_step(self, step: Step) -> None:
        """Put the right voxels of all processes into the bank, in place of those of the longest ago."""
        if self.right is not None:
            self.bank.add(self.right, step.index, step.distributed)

    def passes(self) -> Passes:
        """Two networks."""
        return Passes(4, 0, 4, 0)
