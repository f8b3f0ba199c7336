"""Cross pseudo supervision (Chen et al., CVPR 2021): two networks learn from each other's hard labels.

As in SSL4MIS: unlabeled images only, no CutMix, no threshold. Limit: the second network is left out of prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from nnunetv2_crossmatch.learning.losses import Criterion
from nnunetv2_crossmatch.learning.network import StackedOutput
from nnunetv2_crossmatch.learning.pseudo_labels import distribution, in_float, label_of, probabilities
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import WEAK
from nnunetv2_crossmatch.methods.consistency import ConsistencyMethod, ConsistencySettings, Parts
from nnunetv2_crossmatch.methods.method import Optimizer, Passes


@dataclass(frozen=True)
class CPSSettings(ConsistencySettings):
    """All settings of a CPS run."""

    trainer: ClassVar[str] = "nnUNetTrainerCPS"


class CPS(ConsistencyMethod):
    """Two networks of one form with weights of their own, each with nnU-Net's loss of the labeled images."""

    Settings: ClassVar[Any] = CPSSettings
    summary = "two networks learn from each other's hard labels"
    presets: ClassVar = {
        # SSL4MIS: 30 000 iterations, batch 12 + 12.
        "ACDC": {"epochs": 120, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12},
    }

    def build(self, network: nn.Module, another: Callable[[], nn.Module]) -> None:
        """Add the second network, whose first weights are others."""
        self.peer = another()

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """An optimizer of the second network."""
        return [default(self.peer)]

    def parts(self, step: Step) -> Parts:
        """Both supervised losses, and the distance of the two predictions."""
        outputs = [self.of_both(network, step) for network in (step.network, self.peer)]
        names = ("sup", "sup_peer")
        supervised = {name: step.supervised(output.labeled) for name, output in zip(names, outputs, strict=True)}
        return Parts(supervised, self.distance(outputs, step), self.probability(outputs[0]))

    def probability(self, output: StackedOutput) -> torch.Tensor:
        """Of the unlabeled images (U, C, S), to be logged."""
        return distribution(output.streams[WEAK].detach(), self.task.regions)

    def distance(self, outputs: list[StackedOutput], step: Step) -> torch.Tensor:
        """Cross-entropy of each network with the hard labels of the other (regions: binary)."""
        logits = [output.streams[WEAK] for output in outputs]
        criterion = Criterion(self.task.regions, (), distributed=step.distributed)
        labels = [label_of(probabilities(each, self.task.regions), 0.0, self.task.regions) for each in logits]
        losses = [criterion.masked_cross_entropy(in_float(z), y) for z, y in zip(logits, labels[::-1], strict=True)]
        return torch.stack(losses).sum()

    def passes(self) -> Passes:
        """Two networks."""
        return Passes(4, 0, 4, 0)
