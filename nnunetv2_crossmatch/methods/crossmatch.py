"""CrossMatch (Zhao, Wang, Ding, JBHI 2024): perturbed images and features, and distillation between the decodings.

    stream  view     features   role
    wn      weak     clean      teacher, without gradient
    ww, ws  weak     weak, strong dropout    students of wn, assistants of sw and ss
    s1, s2  strong1, strong2  clean          students of wn
    sw, ss  strong2  weak, strong dropout    students of wn and of their assistants

Limit: what is particular to CrossMatch; tau, CutMix and the losses of a row are in ``table``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.learning.streams import WEAK, LossRow, Stream, StreamTable
from nnunetv2_crossmatch.methods.settings import OURS, RELEASED, setting
from nnunetv2_crossmatch.methods.table import TableMethod
from nnunetv2_crossmatch.methods.table_settings import TableSettings

STREAMS = {
    "wn": Stream(WEAK),
    "s1": Stream("strong1"),
    "s2": Stream("strong2"),
    "ww": Stream(WEAK, "weak"),
    "ws": Stream(WEAK, "strong"),
    "sw": Stream("strong2", "weak"),
    "ss": Stream("strong2", "strong"),
}


def loss_table(eta: float) -> StreamTable:
    """The rows of CrossMatch: their sum is L_ip + (1 - eta) L_tkd + eta L_dkd (Eq. 10 to 12, Algorithm 1)."""
    image_level = [LossRow("ip", student, "wn", 1 / 2) for student in ("s1", "s2")]
    from_teacher = [LossRow("tkd", student, "wn", 1 / 4, 1 - eta) for student in ("ww", "ws", "sw", "ss")]
    from_assistants = [LossRow("dkd", "sw", "ww", 1 / 2, eta), LossRow("dkd", "ss", "ws", 1 / 2, eta)]
    return StreamTable(STREAMS, (*image_level, *from_teacher, *from_assistants))


@dataclass(frozen=True)
class CrossMatchSettings(TableSettings):
    """All settings of a CrossMatch run."""

    trainer: ClassVar[str] = "nnUNetTrainerCrossMatch"

    eta: float = setting(
        0.3, "eta", "share of the decoder distillation among the distillation losses", "paper, Table IV", low=0, high=1
    )
    weak_dropout: float = setting(
        0.25, "weak", "rate of the weak feature perturbation", "paper, Table V", low=0, high=0.99
    )
    strong_dropout: float = setting(
        0.75, "strong", "rate of the strong feature perturbation", "paper, Table V", low=0, high=0.99
    )
    dropout: str = setting(
        "channel",
        "drop",
        "kind of feature perturbation",
        "paper, Fig. 5",
        choices=("channel", "alpha", "featurealpha"),
    )
    levels: str = setting(
        "all",
        "levels",
        "features that are perturbed: all skips and the bottleneck, or the bottleneck alone (the paper's text)",
        RELEASED,
        choices=("all", "bottleneck"),
    )
    students: int = setting(
        6,
        "students",
        "how many of the six students learn in a step, drawn anew; their losses weigh more",
        OURS,
        low=1,
        high=6,
        kind=int,
    )


class CrossMatch(TableMethod):
    """Perturbed streams and self-distillation."""

    Settings = CrossMatchSettings
    settings: CrossMatchSettings
    summary = "two strong views and four perturbed decodings learn from the weak view and from each other"
    unlabeled_views = (WEAK, "strong1", "strong2")
    # Published settings; everything that is not named here is the default.
    presets: ClassVar = {
        # IV-2: LA, AdamW, 9000 iterations, batch 4 (2 + 2), tau 0.85; learning rate from the authors' released code.
        "LA": {
            "epochs": 36,
            "tau": 0.85,
            "optimizer": "adamw",
            "learning_rate": 0.001,
            "batch": 2,
            "unlabeled_batch": 2,
            "warmup": 0.0,
        },
        # IV-2: ACDC, SGD, 300 passes over the unlabeled slices (29 000 steps with 7 labeled patients), tau 0.95; batch
        # 12 + 12 from the authors' released code.
        "ACDC": {"epochs": 116, "tau": 0.95, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12, "warmup": 0.0},
    }

    def table(self) -> StreamTable:
        """All seven streams and eight rows."""
        return loss_table(self.settings.eta)

    def table_of_step(self, rng: np.random.Generator) -> StreamTable:
        """The rows of as many students as the settings say, drawn anew."""
        return self.table().drawn(self.settings.students, rng)

    def table_of_trial(self, table: StreamTable) -> StreamTable:
        """The set of students with most views."""
        return replace(self.table().dearest(self.settings.students), labeled_before=table.labeled_before)

    def perturbations(self) -> Mapping[str, FeatureDropout]:
        """Weak and strong dropout of the features."""
        settings = self.settings
        rates = {"weak": settings.weak_dropout, "strong": settings.strong_dropout}
        return {name: FeatureDropout(rate, settings.dropout, settings.levels) for name, rate in rates.items()}
