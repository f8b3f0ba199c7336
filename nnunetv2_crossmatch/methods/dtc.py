"""DTC, dual-task consistency (Luo et al., AAAI 2021): a head for signed distances agrees with the segmentation.

Limit: what is particular to it; the head is in ``distance_head``. Prediction does not use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nnunetv2_crossmatch.learning.consistency import squared_distance
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED
from nnunetv2_crossmatch.methods.consistency import Parts
from nnunetv2_crossmatch.methods.distance_head import DistanceMethod, DistanceSettings
from nnunetv2_crossmatch.methods.settings import redefined, setting

PAPER = "DTC (AAAI 2021)"


@dataclass(frozen=True)
class DTCSettings(DistanceSettings):
    """All settings of a DTC run."""

    trainer: ClassVar[str] = "nnUNetTrainerDTC"

    unsupervised: float = redefined(DistanceSettings, "unsupervised", 1.0, PAPER)
    warmup: float = redefined(DistanceSettings, "warmup", 1.0, PAPER)
    steepness: float = setting(
        1500.0, "steepness", "factor of a distance whose sigmoid is compared with a probability", PAPER, low=1
    )


class DTC(DistanceMethod):
    """A head that predicts how far from the boundary of each class or region a voxel is."""

    Settings = DTCSettings
    settings: DTCSettings
    summary = "a second head predicts distances from the boundary, which agree with the segmentation"
    presets: ClassVar = {
        # The authors' released code: 6000 iterations, batch 2 + 2.
        "LA": {"epochs": 24, "optimizer": "sgd", "batch": 2, "unlabeled_batch": 2},
    }

    def parts(self, step: Step) -> Parts:
        """nnU-Net's loss and that of the distances of labeled images; agreement of both tasks on all images."""
        _, probability, distance, supervised = self.outputs(step)
        foreground = probability if self.task.regions else probability[:, 1:]
        agreement = squared_distance(torch.sigmoid(-self.settings.steepness * distance), foreground)
        return Parts(supervised, agreement, probability[len(step.images[LABELED]) :])
