"""URPC (Luo et al., MedIA 2022): the predictions of several scales agree, the less where they differ much.

As in SSL4MIS; the scales are nnU-Net's deep-supervision heads. Limit: needs at least two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from nnunetv2_crossmatch.errors import Problem, UnsupportedError
from nnunetv2_crossmatch.learning.consistency import divergence, weighted_mean
from nnunetv2_crossmatch.learning.pseudo_labels import distribution
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED
from nnunetv2_crossmatch.methods.consistency import (
    SSL4MIS,
    ConsistencyMethod,
    ConsistencySettings,
    Parts,
    dropout_setting,
)
from nnunetv2_crossmatch.methods.settings import setting

INTERPOLATION = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class URPCSettings(ConsistencySettings):
    """All settings of a URPC run."""

    trainer: ClassVar[str] = "nnUNetTrainerURPC"

    scales: int = setting(
        4, "scales", "finest heads that learn and agree, as many as there are at most", SSL4MIS, low=2, kind=int
    )
    feature_dropout: float = dropout_setting()


class URPC(ConsistencyMethod):
    """One network, whose heads all predict the whole patch."""

    Settings = URPCSettings
    settings: URPCSettings
    summary = "predictions of several scales agree, less so where they differ much"
    presets: ClassVar = {
        # SSL4MIS: 30 000 iterations, batch 12 + 12.
        "ACDC": {"epochs": 120, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12},
    }

    def build(self, network: Any, another: Callable[[], nn.Module]) -> None:
        """Add nothing.

        Raises:
            UnsupportedError: the network has one head.
        """
        if len(network.decoder.seg_layers) < 2:
            detail = "the network has one scale, and URPC lets several agree"
            raise UnsupportedError(Problem("network not supported", "the plans", detail, "use plans with more stages"))

    def parts(self, step: Step) -> Parts:
        """Supervised loss of every scale at full resolution, and the agreement of all scales."""
        heads = self.of_both(step.network, step, self.draw_dropout(step), all_heads=True).labeled
        mode, size = INTERPOLATION[self.task.dimensions], heads[0].shape[2:]
        scales = [
            heads[0],
            *(functional.interpolate(each, size, mode=mode) for each in heads[1 : self.settings.scales]),
        ]
        labeled = len(step.images[LABELED])
        supervised = torch.stack([step.full_supervised(each[:labeled]) for each in scales]).mean()
        unlabeled = [distribution(each[labeled:], self.task.regions) for each in scales]
        return Parts({"sup": supervised}, self.agreement(unlabeled, step.distributed), unlabeled[0])

    def agreement(self, scales: list[torch.Tensor], distributed: bool) -> torch.Tensor:
        """Mean over the scales of their distance from the mean of all, weighted by exp(-divergence), plus divergence.

        Args:
            scales: probabilities, each (U, C, S).
            distributed: whether weights are normalised over all processes.
        """
        mean, losses = torch.stack(scales).mean(0), []
        for scale in scales:
            unsure = divergence(mean, scale, self.task.regions)
            losses.append(weighted_mean((mean - scale).square(), torch.exp(-unsure), distributed) + unsure.mean())
        return torch.stack(losses).mean()
