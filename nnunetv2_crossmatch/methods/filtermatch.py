"""FilterMatch: the method of nnFilterMatch (Yang, arXiv 2509.19746), which uses unlabeled cases less the surer it is.

Labeled and pseudo-labeled images are one batch under one loss; three times in a run the surest cases leave. Stated from
the paper's description. Limit: what is particular to it; the joint batch is in ``table``, the loader the trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nnunetv2_crossmatch.learning.consistency import entropy
from nnunetv2_crossmatch.learning.exchange import sum_over_processes
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import WEAK, StreamTable
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss
from nnunetv2_crossmatch.methods.fixmatch import TABLE
from nnunetv2_crossmatch.methods.settings import redefined, setting
from nnunetv2_crossmatch.methods.table import TableMethod
from nnunetv2_crossmatch.methods.table_settings import TableSettings

PAPER = "nnFilterMatch (arXiv 2509.19746)"
PARTS = 3  # of a run; cases leave between two of them


@dataclass(frozen=True)
class FilterMatchSettings(TableSettings):
    """All settings of a FilterMatch run."""

    trainer: ClassVar[str] = "nnUNetTrainerFilterMatch"

    warmup: float = redefined(TableSettings, "warmup", 0.0, PAPER)
    labeled_only: float = redefined(TableSettings, "labeled_only", 1 / 15, PAPER)
    cutmix: float = redefined(TableSettings, "cutmix", 0.0, PAPER)
    geometry: int = redefined(TableSettings, "geometry", 1, PAPER)
    joint: int = redefined(TableSettings, "joint", 1, PAPER)
    leaving: float = setting(
        0.15,
        "filter",
        "share of the unlabeled cases, those with the lowest mean entropy, that leave after every third of the run",
        PAPER,
        low=0,
        high=0.9,
    )


class FilterMatch(TableMethod):
    """FixMatch in one batch, on fewer and fewer unlabeled cases.

    Attributes:
        left: cases that are not drawn any more.
        parts_done: of the run, after which cases have left.
        seen: entropies of the crops of each case since then, and their number, (2, cases).
    """

    Settings = FilterMatchSettings
    settings: FilterMatchSettings
    summary = "labeled and pseudo-labeled images in one batch, without the cases that the network is surest of"
    unlabeled_views = (WEAK, "strong1")

    def __init__(self, settings: FilterMatchSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.left: list[str] = []
        self.parts_done = 0
        self.seen = torch.zeros(2, 0)
        self.numbers: dict[str, int] = {}
        self.entropies: torch.Tensor | None = None

    def table(self) -> StreamTable:
        """That of FixMatch."""
        return TABLE

    def unsupervised_loss(self, step: Step, table: StreamTable) -> UnsupervisedLoss:
        """As inherited; the mean entropy (U) of the labels of each image is kept."""
        loss = super().unsupervised_loss(step, table)
        loss.label = self.noting(loss.label)
        return loss

    def noting(self, label: Callable[[torch.Tensor], PseudoLabel]) -> Callable[[torch.Tensor], PseudoLabel]:
        """``label``, which keeps what it has seen."""

        def label_and_note(probability: torch.Tensor) -> PseudoLabel:
            self.entropies = entropy(probability, self.task.regions).flatten(1).mean(1)
            return label(probability)

        return label_and_note

    def after_step(self, step: Step) -> None:
        """As inherited, and adds the entropies to those of their cases, over all processes."""
        super().after_step(step)
        if self.entropies is None or not step.cases:
            return
        rows = torch.tensor([self.numbers[case] for case in step.cases], device=self.entropies.device)
        self.seen = self.seen.to(self.entropies)
        values = torch.stack([self.entropies, torch.ones_like(self.entropies)])
        self.seen += sum_over_processes(torch.zeros_like(self.seen).index_add_(1, rows, values))

    def drawn_cases(self, cases: Sequence[str], progress: float) -> list[str]:
        """Those that have not left; at the end of a part of the run more of them leave."""
        self.numbers = {case: number for number, case in enumerate(cases)}
        if not self.seen.numel():
            self.seen = torch.zeros(2, len(cases))
        if (part := math.floor(PARTS * progress)) > self.parts_done:
            self.left += self.surest([case for case in cases if case not in self.left])
            self.parts_done, self.seen = part, torch.zeros_like(self.seen)
        return [case for case in cases if case not in self.left]

    def surest(self, drawn: Sequence[str]) -> list[str]:
        """The share of ``drawn`` that leaves; a case without a crop since the last time stays, and so does one."""
        total, count = self.seen.tolist()
        rows = {case: self.numbers[case] for case in drawn}
        mean = {case: total[row] / count[row] for case, row in rows.items() if count[row]}
        return sorted(mean, key=lambda case: mean[case])[: min(round(self.settings.leaving * len(rows)), len(rows) - 1)]

    def decisions(self) -> dict[str, Any]:
        """As inherited, which cases have left, and what is known of the others."""
        filtered = {"left": list(self.left), "parts_done": self.parts_done, "seen": self.seen.tolist()}
        return {**super().decisions(), "filter": filtered}

    def decide_as(self, decisions: Mapping[str, Any]) -> None:
        """Take over the cases and entropies of the run that is continued."""
        super().decide_as(decisions)
        if filtered := decisions.get("filter"):
            self.left, self.parts_done = list(filtered["left"]), filtered["parts_done"]
            self.seen = torch.tensor(filtered["seen"])
