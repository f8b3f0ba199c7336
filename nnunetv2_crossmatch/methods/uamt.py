"""UA-MT (Yu et al., MICCAI 2019): Mean Teacher that learns where the teacher is sure, by Monte Carlo passes.

Limit: what differs from ``mean_teacher``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from nnunetv2_crossmatch.learning.consistency import entropy, gaussian_ramp, weighted_mean
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.methods.mean_teacher import MeanTeacher, MeanTeacherSettings
from nnunetv2_crossmatch.methods.method import Passes
from nnunetv2_crossmatch.methods.settings import redefined, setting

PAPER = "UA-MT (MICCAI 2019)"


@dataclass(frozen=True)
class UAMTSettings(MeanTeacherSettings):
    """All settings of a UA-MT run."""

    trainer: ClassVar[str] = "nnUNetTrainerUAMT"

    unsupervised: float = redefined(MeanTeacherSettings, "unsupervised", 0.2, PAPER)
    warmup: float = redefined(MeanTeacherSettings, "warmup", 1.0, PAPER)
    samples: int = setting(8, "samples", "passes of the teacher whose mean says how sure it is", PAPER, low=1, kind=int)
    certain: float = setting(
        0.75,
        "certain",
        "share of the largest entropy below which a voxel counts at the beginning; 1 at the end of the run",
        PAPER,
        low=0,
        high=1,
    )


class UAMT(MeanTeacher):
    """A moving average as teacher, and only voxels of which it is sure."""

    Settings = UAMTSettings
    settings: UAMTSettings
    summary = "Mean Teacher where the teacher is sure, by several passes of it"
    presets: ClassVar = {
        # The authors' released code: 6000 iterations, batch 2 + 2.
        "LA": {"epochs": 24, "optimizer": "sgd", "batch": 2, "unlabeled_batch": 2},
    }

    def distance(self, student: torch.Tensor, teacher: torch.Tensor, step: Step) -> torch.Tensor:
        """Mean squared difference over the voxels (regions: of each) whose entropy is below the threshold."""
        mean = torch.zeros_like(teacher)
        for _ in range(self.settings.samples):
            mean += self.teacher(step) / self.settings.samples
        sure = entropy(mean, self.task.regions) < self.threshold(step.progress)
        return weighted_mean((student - teacher).square(), sure.to(student.dtype), step.distributed)

    def threshold(self, progress: float) -> float:
        """Entropy in nats below which a voxel counts."""
        share = self.settings.certain + (1 - self.settings.certain) * gaussian_ramp(progress)
        return share * math.log(2 if self.task.regions else self.task.channels)

    def passes(self) -> Passes:
        """The samples, and one more pass of the teacher whose prediction is learned."""
        return Passes(2, self.settings.samples + 1, 2, self.settings.samples + 1)
