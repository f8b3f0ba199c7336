"""DTC, dual-task consistency (Luo et al., AAAI 2021): a head for signed distances agrees with the segmentation.

Limit: distance maps of labels are made on the CPU in every step; prediction does not use the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from nnunetv2_crossmatch.learning.consistency import squared_distance, weighted_mean
from nnunetv2_crossmatch.learning.pseudo_labels import distribution, in_float, reference_label
from nnunetv2_crossmatch.learning.shapes import distance_maps
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK
from nnunetv2_crossmatch.methods.consistency import ConsistencyMethod, ConsistencySettings, Parts
from nnunetv2_crossmatch.methods.method import Optimizer
from nnunetv2_crossmatch.methods.settings import redefined, setting

PAPER = "DTC (AAAI 2021)"


@dataclass(frozen=True)
class DTCSettings(ConsistencySettings):
    """All settings of a DTC run."""

    trainer: ClassVar[str] = "nnUNetTrainerDTC"

    unsupervised: float = redefined(ConsistencySettings, "unsupervised", 1.0, PAPER)
    warmup: float = redefined(ConsistencySettings, "warmup", 1.0, PAPER)
    distance: float = setting(0.3, "distance", "weight of the distances of labeled images", PAPER, low=0)
    steepness: float = setting(
        1500.0, "steepness", "factor of a distance whose sigmoid is compared with a probability", PAPER, low=1
    )


class DTC(ConsistencyMethod):
    """A head that predicts how far from the boundary of each class or region a voxel is."""

    Settings = DTCSettings
    settings: DTCSettings
    summary = "a second head predicts distances from the boundary, which agree with the segmentation"
    presets: ClassVar = {
        # The authors' released code: 6000 iterations, batch 2 + 2.
        "LA": {"epochs": 24, "optimizer": "sgd", "batch": 2, "unlabeled_batch": 2},
    }

    def build(self, network: Any, another: Callable[[], nn.Module]) -> None:
        """Add the head, on the features of the network's own finest head."""
        convolution = nn.Conv2d if self.task.dimensions == 2 else nn.Conv3d
        self.head = convolution(network.decoder.seg_layers[-1].in_channels, self.task.foreground, 1)

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """An optimizer of the head."""
        return [default(self.head)]

    def parts(self, step: Step) -> Parts:
        """nnU-Net's loss and that of the distances of labeled images; agreement of both tasks on all images."""
        labeled = len(step.images[LABELED])
        images = torch.cat([step.images[LABELED], step.images[WEAK]])
        heads, last = step.network(images, mode="heads_and_last", labeled_rows=labeled)
        distance = torch.tanh(in_float(self.head(last)))
        probability = distribution(heads[0], self.task.regions)
        foreground = probability if self.task.regions else probability[:, 1:]
        agreement = squared_distance(torch.sigmoid(-self.settings.steepness * distance), foreground)
        supervised = {
            "sup": step.supervised(step.network.for_host([heads[0][:labeled], *heads[1:]])),
            "distance": self.settings.distance * self.of_distances(distance[:labeled], step),
        }
        return Parts(supervised, agreement, probability[labeled:])

    def of_distances(self, distance: torch.Tensor, step: Step) -> torch.Tensor:
        """Mean squared error of the distances of labeled images where they are known."""
        label = reference_label(step.full_target, self.task.channels, self.task.regions)
        wanted, known = distance_maps(label, self.task.channels, self.task.spacing, distance.dtype)
        return weighted_mean((distance - wanted).square(), known.to(distance.dtype), step.distributed)
