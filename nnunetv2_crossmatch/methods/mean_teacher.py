"""Mean Teacher (Tarvainen and Valpola, NIPS 2017): the network agrees with a moving average that sees noisy images.

As in SSL4MIS. Limit: what is particular to it; the moving average is in ``consistency``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nnunetv2_crossmatch.learning.consistency import squared_distance
from nnunetv2_crossmatch.learning.pseudo_labels import distribution, probabilities
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import WEAK
from nnunetv2_crossmatch.methods.consistency import (
    SSL4MIS,
    ConsistencySettings,
    Parts,
    TeacherMethod,
    dropout_setting,
)
from nnunetv2_crossmatch.methods.method import Passes
from nnunetv2_crossmatch.methods.settings import setting


@dataclass(frozen=True)
class MeanTeacherSettings(ConsistencySettings):
    """All settings of a Mean Teacher run."""

    trainer: ClassVar[str] = "nnUNetTrainerMeanTeacher"

    ema: float = setting(
        0.99, "ema", "share of the teacher's weights that stays in a step; less in the first", SSL4MIS, low=0, high=1
    )
    noise: float = setting(
        0.1,
        "noise",
        "standard deviation of the noise on the teacher's images, in that of the image itself; cut at twice that",
        f"{SSL4MIS}; relative: ours",
        low=0,
    )
    feature_dropout: float = dropout_setting()


class MeanTeacher(TeacherMethod):
    """A teacher that is a moving average of the network, and noise."""

    Settings = MeanTeacherSettings
    summary = "agrees with a moving average of itself, which sees noisy images"
    presets: ClassVar = {
        # SSL4MIS: 30 000 iterations, batch 12 + 12.
        "ACDC": {"epochs": 120, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12},
    }

    def parts(self, step: Step) -> Parts:
        """Mean squared difference of the student's and the teacher's probabilities."""
        output = self.of_both(step.network, step, self.draw_dropout(step))
        teacher = self.teacher(step)
        student = distribution(output.streams[WEAK], self.task.regions)
        return Parts({"sup": step.supervised(output.labeled)}, self.distance(student, teacher, step), teacher)

    @torch.no_grad()
    def teacher(self, step: Step) -> torch.Tensor:
        """Probabilities (U, C, S) of the teacher with noise and dropout of its own."""
        features = self.average(self.noisy(step), mode="encode")
        logits: Any = self.average(features, mode="decode", drawn=self.draw_dropout(step))
        return probabilities(logits[0], self.task.regions)

    def distance(self, student: torch.Tensor, teacher: torch.Tensor, step: Step) -> torch.Tensor:
        """Distance of the two predictions."""
        return squared_distance(student, teacher)

    def passes(self) -> Passes:
        """One pass of the teacher."""
        return Passes(2, 1, 2, 1)
