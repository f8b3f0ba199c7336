"""Base of the methods with a second head, which predicts how far every voxel is from the boundary of each class.

Limit: the head and what it learns of the labels; the files of the methods say what unlabeled images teach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from nnunetv2_crossmatch.learning.consistency import weighted_mean
from nnunetv2_crossmatch.learning.pseudo_labels import distribution, in_float
from nnunetv2_crossmatch.learning.shapes import signed_distances
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK
from nnunetv2_crossmatch.methods.consistency import ConsistencyMethod, ConsistencySettings
from nnunetv2_crossmatch.methods.method import Optimizer
from nnunetv2_crossmatch.methods.settings import setting

SOURCE = "SASSNet (MICCAI 2020), DTC (AAAI 2021)"


@dataclass(frozen=True)
class DistanceSettings(ConsistencySettings):
    """Settings of the head."""

    distance: float = setting(0.3, "distance", "weight of the distances of labeled images", SOURCE, low=0)


class Outputs(NamedTuple):
    """Of labeled and then unlabeled images: themselves (N, C, S), probabilities and distances (N, K, S).

    ``supervised``: the losses of the labeled ones by name.
    """

    images: torch.Tensor
    probability: torch.Tensor
    distance: torch.Tensor
    supervised: dict[str, torch.Tensor]


class DistanceMethod(ConsistencyMethod):
    """A head beside the network's own finest one; -1 is farthest inside, 1 farthest outside."""

    Settings = DistanceSettings

    def build(self, network: Any, another: Callable[[], nn.Module]) -> None:
        """Add the head, on the features of the network's own finest head."""
        convolution = nn.Conv2d if self.task.dimensions == 2 else nn.Conv3d
        self.head = convolution(network.decoder.seg_layers[-1].in_channels, self.task.foreground, 1)

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """An optimizer of the head."""
        return [default(self.head)]

    @property
    def label_maps(self) -> int:
        """A distance for each foreground class or region."""
        return self.task.foreground

    def of_labels(self) -> Callable[..., torch.Tensor]:
        """Signed distances."""
        task = self.task
        return partial(signed_distances, channels=task.channels, regions=task.regions, spacing=task.spacing)

    def outputs(self, step: Step) -> Outputs:
        """Of one pass of the network: nnU-Net's loss and that of the distances of labeled images are among them."""
        labeled = len(step.images[LABELED])
        images = torch.cat([step.images[LABELED], step.images[WEAK]])
        heads, last = step.network(images, mode="heads_and_last", labeled_rows=labeled)
        distance = torch.tanh(in_float(self.head(last)))
        supervised = {
            "sup": step.supervised(step.network.for_host([heads[0][:labeled], *heads[1:]])),
            "distance": self.settings.distance * self.of_distances(distance[:labeled], step),
        }
        return Outputs(images, distribution(heads[0], self.task.regions), distance, supervised)

    def of_distances(self, distance: torch.Tensor, step: Step) -> torch.Tensor:
        """Mean squared error of the distances (B, K, S) of labeled images where they are known."""
        wanted = step.of_labels if step.of_labels is not None else self.of_labels()(step.target, dtype=distance.dtype)
        known = ~wanted.isnan()
        error = (distance - wanted.nan_to_num()).square()
        return weighted_mean(error, known.to(distance.dtype), step.distributed)
