"""FixMatch (Sohn et al., NeurIPS 2020) for segmentation: one strong view learns from the labels of the weak one.

As in the UniMatch authors' comparison (Yang et al., CVPR 2023): one strong view with CutMix, masked Dice. Limit: what
is particular to FixMatch; tau, CutMix and the losses of a row are in ``table``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnunetv2_crossmatch.learning.streams import WEAK, LossRow, Stream, StreamTable
from nnunetv2_crossmatch.methods.table import TableMethod
from nnunetv2_crossmatch.methods.table_settings import TableSettings

TABLE = StreamTable({"w": Stream(WEAK), "s1": Stream("strong1")}, (LossRow("ip", "s1", "w", 1),))


@dataclass(frozen=True)
class FixMatchSettings(TableSettings):
    """All settings of a FixMatch run."""

    trainer: ClassVar[str] = "nnUNetTrainerFixMatch"


class FixMatch(TableMethod):
    """One weak and one strong view."""

    Settings = FixMatchSettings
    summary = "one strong view learns from the labels of the weak one"
    unlabeled_views = (WEAK, "strong1")
    presets: ClassVar = {
        # UniMatch's medical scripts: 300 passes over the unlabeled slices of ACDC with 7 labeled patients (29 000
        # steps), SGD, tau 0.95, batch 12 + 12. Their supervised part is (CE + Dice) / 4 beside an unsupervised one of
        # 1/2; nnU-Net's is CE + Dice, hence u = 2.
        "ACDC": {
            "epochs": 116,
            "tau": 0.95,
            "optimizer": "sgd",
            "batch": 12,
            "unlabeled_batch": 12,
            "warmup": 0.0,
            "unsupervised": 2.0,
        },
        # Ours: ahead of supervised training of equal time on four tasks (docs/results.md).
        "recommended": {
            "labeled_only": 0.25,
            "geometry": 1,
            "ema": 0.99,
            "mirror_teacher": 1,
            "criterion": "dicece",
            "unsupervised": 1.0,
        },
    }

    def table(self) -> StreamTable:
        """Two streams, one row."""
        return TABLE
