"""SASSNet (Li et al., MICCAI 2020): signed distances of unlabeled images must look like those of labeled ones.

A discriminator learns to tell them apart, and the network learns to deceive it. Limit: what is particular to it; the
head for distances is in ``distance_head``. Prediction uses neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from nnunetv2_crossmatch.learning.discriminator import Discriminator
from nnunetv2_crossmatch.learning.pseudo_labels import in_float
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED
from nnunetv2_crossmatch.methods.consistency import Parts
from nnunetv2_crossmatch.methods.distance_head import DistanceMethod, DistanceSettings
from nnunetv2_crossmatch.methods.method import Optimizer
from nnunetv2_crossmatch.methods.settings import redefined

PAPER = "SASSNet (MICCAI 2020)"
RATE, BETAS = 1e-4, (0.9, 0.99)  # of the discriminator's Adam; the authors' released code


@dataclass(frozen=True)
class SASSNetSettings(DistanceSettings):
    """All settings of a SASSNet run."""

    trainer: ClassVar[str] = "nnUNetTrainerSASSNet"

    unsupervised: float = redefined(DistanceSettings, "unsupervised", 0.01, PAPER)
    warmup: float = redefined(DistanceSettings, "warmup", 1.0, PAPER)


class ConstantRate:
    """A schedule that leaves the learning rate as it is."""

    def step(self, epoch: int) -> None:
        """Nothing to do."""


class SASSNet(DistanceMethod):
    """A head for distances, and a discriminator that sees them with the image."""

    Settings = SASSNetSettings
    settings: SASSNetSettings
    summary = "a discriminator cannot tell the distances of unlabeled images from those of labeled ones"
    presets: ClassVar = {
        # The authors' released code: 6000 iterations, batch 2 + 2.
        "LA": {"epochs": 24, "optimizer": "sgd", "batch": 2, "unlabeled_batch": 2},
    }

    def build(self, network: Any, another: Callable[[], nn.Module]) -> None:
        """Add the head and the discriminator."""
        super().build(network, another)
        first = next(each for each in network.encoder.modules() if isinstance(each, nn.Conv2d | nn.Conv3d))
        self.discriminator = Discriminator(self.task.dimensions, self.task.foreground, first.in_channels)

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """That of the head, and Adam with a constant rate of the discriminator."""
        adam = torch.optim.Adam(self.discriminator.parameters(), RATE, BETAS)
        return [*super().optimizers(default), (adam, ConstantRate())]

    def parts(self, step: Step) -> Parts:
        """Losses of labeled images and of the discriminator; how well it tells the unlabeled images.

        Network and discriminator learn in one backward pass: each is constant in the other's loss.
        """
        labeled = len(step.images[LABELED])
        images, probability, distance, supervised = self.outputs(step)
        is_labeled = (torch.arange(len(images), device=images.device) < labeled).long()
        judged = in_float(self.discriminator(distance.detach(), images))
        supervised["discriminator"] = functional.cross_entropy(judged, is_labeled)
        deceived = in_float(self.discriminator.fixed(distance[labeled:], images[labeled:]))
        return Parts(
            supervised,
            functional.cross_entropy(deceived, torch.ones_like(is_labeled[labeled:])),
            probability[labeled:],
        )
