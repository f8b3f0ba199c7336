"""DMD, decoupled mutual distillation (Zhao et al., MICCAI 2023): soft Dice between two networks' softened predictions.

Limit: what differs from CPS, which has the second network; the softened predictions agree on all images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nnunetv2_crossmatch.learning.losses import Criterion, dice_classes
from nnunetv2_crossmatch.learning.network import StackedOutput, full_resolution
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, distribution
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import WEAK
from nnunetv2_crossmatch.methods.cps import CPS, CPSSettings
from nnunetv2_crossmatch.methods.settings import redefined, setting

PAPER = "DMD (MICCAI 2023)"


@dataclass(frozen=True)
class DMDSettings(CPSSettings):
    """All settings of a DMD run."""

    trainer: ClassVar[str] = "nnUNetTrainerDMD"

    unsupervised: float = redefined(CPSSettings, "unsupervised", 4.0, PAPER)
    warmup: float = redefined(CPSSettings, "warmup", 0.0, PAPER)
    temperature: float = setting(2.0, "temp", "temperature of the predictions that agree", PAPER, low=0.01)


class DMD(CPS):
    """Two networks whose soft predictions agree, with gradient in both."""

    Settings = DMDSettings
    settings: DMDSettings
    summary = "the soft predictions of two networks agree, on all images"
    presets: ClassVar = {
        # The authors' released code: 6000 iterations, batch 2 + 2.
        "LA": {"epochs": 24, "optimizer": "sgd", "batch": 2, "unlabeled_batch": 2},
    }

    def distance(self, outputs: list[StackedOutput], step: Step) -> torch.Tensor:
        """Soft Dice of both predictions of the labeled and the unlabeled images."""
        regions, channels = self.task.regions, self.task.channels
        logits = [torch.cat([full_resolution(each.labeled), each.streams[WEAK]]) for each in outputs]
        first, second = (distribution(each / self.settings.temperature, regions) for each in logits)
        every = torch.ones_like(second[:, 0], dtype=torch.bool)
        label = PseudoLabel(every, every, every[:, None].expand_as(second), second)
        criterion = Criterion(regions, dice_classes("auto", channels, regions), distributed=step.distributed)
        return criterion.dice(first, label)
