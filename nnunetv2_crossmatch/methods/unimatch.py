"""UniMatch (Yang et al., CVPR 2023): two strong views and one perturbation of features learn from the weak view.

Limit: what is particular to UniMatch; tau, CutMix and the losses of a row are in ``table``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.learning.streams import WEAK, LossRow, Stream, StreamTable
from nnunetv2_crossmatch.methods.fixmatch import FixMatch
from nnunetv2_crossmatch.methods.settings import RELEASED, setting
from nnunetv2_crossmatch.methods.table import TableMethod
from nnunetv2_crossmatch.methods.table_settings import TableSettings

STREAMS = {
    "w": Stream(WEAK),
    "s1": Stream("strong1"),
    "s2": Stream("strong2"),
    "fp": Stream(WEAK, "feature"),
}
ROWS = (LossRow("ip", "s1", "w", 1 / 4), LossRow("ip", "s2", "w", 1 / 4), LossRow("fp", "fp", "w", 1 / 2))


@dataclass(frozen=True)
class UniMatchSettings(TableSettings):
    """All settings of a UniMatch run."""

    trainer: ClassVar[str] = "nnUNetTrainerUniMatch"

    feature_dropout: float = setting(
        0.5, "featdrop", "rate of the channel dropout of skips and bottleneck", RELEASED, low=0, high=0.99
    )


class UniMatch(TableMethod):
    """Two strong views and one feature perturbation."""

    Settings = UniMatchSettings
    settings: UniMatchSettings
    summary = "two strong views and perturbed features learn from the labels of the weak view"
    unlabeled_views = (WEAK, "strong1", "strong2")
    presets: ClassVar = {"ACDC": FixMatch.presets["ACDC"]}  # one script, one set of numbers

    def table(self) -> StreamTable:
        """Four streams, three rows."""
        return StreamTable(STREAMS, ROWS)

    def perturbations(self) -> Mapping[str, FeatureDropout]:
        """Channel dropout of all levels."""
        return {"feature": FeatureDropout(self.settings.feature_dropout)}
