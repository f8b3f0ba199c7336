"""MC-Net (Wu et al., MICCAI 2021): decoders that differ in their up-sampling agree, each with the others sharpened.

Limit: prediction uses the network's own decoder; the further ones are in ``learning.auxiliary_decoder``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import torch
from torch import nn

from nnunetv2_crossmatch.learning.auxiliary_decoder import AuxiliaryDecoder
from nnunetv2_crossmatch.learning.consistency import squared_distance
from nnunetv2_crossmatch.learning.labeling import sharpened
from nnunetv2_crossmatch.learning.pseudo_labels import distribution
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK
from nnunetv2_crossmatch.methods.consistency import ConsistencyMethod, ConsistencySettings, Parts
from nnunetv2_crossmatch.methods.method import Optimizer, Passes
from nnunetv2_crossmatch.methods.settings import redefined, setting

PAPER = "MC-Net (MICCAI 2021)"


@dataclass(frozen=True)
class MCNetSettings(ConsistencySettings):
    """All settings of an MC-Net run."""

    trainer: ClassVar[str] = "nnUNetTrainerMCNet"

    unsupervised: float = redefined(ConsistencySettings, "unsupervised", 0.1, f"{PAPER}, ACDC")
    temperature: float = setting(0.1, "temp", "temperature of the sharpened predictions", PAPER, low=0.05)


class MCNet(ConsistencyMethod):
    """One encoder and two decoders."""

    Settings: ClassVar[Any] = MCNetSettings
    settings: MCNetSettings
    ways: ClassVar[tuple[str, ...]] = ("linear",)
    summary = "two decoders that differ in their up-sampling agree"
    presets: ClassVar = {
        # The authors' released code: 15 000 iterations, batch 2 + 2, risen at 6000; 1 beside half of Dice is u = 2.
        "LA": {
            "epochs": 60,
            "optimizer": "sgd",
            "batch": 2,
            "unlabeled_batch": 2,
            "unsupervised": 2.0,
            "warmup": 0.4,
        },
        # 30 000 iterations, batch 12 + 12.
        "ACDC": {"epochs": 120, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12},
    }

    def build(self, network: nn.Module, another: Callable[[], nn.Module]) -> None:
        """Add the further decoders."""
        self.decoders = nn.ModuleList(AuxiliaryDecoder(another().decoder, way) for way in self.ways)

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """One optimizer of the further decoders."""
        return [default(self.decoders)]

    def parts(self, step: Step) -> Parts:
        """Supervised losses of all decoders, and the distance of each from the others, on all images."""
        labeled = len(step.images[LABELED])
        features = step.network(torch.cat([step.images[LABELED], step.images[WEAK]]), mode="encode")
        outputs = [step.network(features, mode="decode", labeled_rows=labeled)]
        outputs += [decoder(features, labeled) for decoder in self.decoders]
        names = ("sup", *(f"sup_{way}" for way in self.ways))
        supervised = {
            name: step.supervised(step.network.for_host([heads[0][:labeled], *heads[1:]]))
            for name, heads in zip(names, outputs, strict=True)
        }
        every = [distribution(heads[0], self.task.regions) for heads in outputs]
        return Parts(supervised, self.distance(every), every[0][labeled:])

    def distance(self, probabilities: list[torch.Tensor]) -> torch.Tensor:
        """Sum over all ordered pairs of the mean squared difference of one and the other sharpened."""
        sharp = [sharpened(each, self.task.regions, self.settings.temperature) for each in probabilities]
        pairs = permutations(range(len(sharp)), 2)
        return torch.stack([squared_distance(probabilities[i], sharp[j]) for i, j in pairs]).sum()

    def passes(self) -> Passes:
        """One encoder, and a decoder more for each way of up-sampling."""
        return Passes(2, 0, 2 * (1 + len(self.ways)), 0)
