"""One step's pseudo-labels and losses: streams teach in turn, students are compared with what they saw.

Limit: given logits only; which network they come from, and in which order, is the business of ``step``.
Shapes: U unlabeled images, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nnunetv2_crossmatch.learning.cutmix import Box
from nnunetv2_crossmatch.learning.losses import PARTS, Criterion, LossRow
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, pseudo_label
from nnunetv2_crossmatch.learning.streams import STREAMS, TEACHER, VIEWS


@dataclass
class Lesson:
    """The unsupervised loss of one step, as far as the step has come.

    Attributes:
        table: the rows of the loss.
        criterion: H of the rows.
        tau: confidence from which a pseudo-label counts.
        boxes: CutMix boxes by strong view; a label gets the boxes of its student's view.
        parts: losses by name, without gradient.
        unsupervised: their sum with the table's factors.
        labels: pseudo-labels by teaching stream, before CutMix.
    """

    table: Sequence[LossRow]
    criterion: Criterion
    tau: float
    boxes: Mapping[str, Sequence[Box | None]] = field(default_factory=dict)
    parts: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    unsupervised: torch.Tensor | float = field(default=0.0, init=False)
    labels: dict[str, PseudoLabel] = field(default_factory=dict, init=False)
    _mixed: dict[tuple[str, str], PseudoLabel] = field(default_factory=dict, init=False)

    @property
    def students(self) -> tuple[str, ...]:
        """Streams that learn, teachers before their students."""
        learning = {row.student for row in self.table}
        return tuple(name for name in STREAMS if name in learning)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Streams that teach without learning: they need no gradient."""
        teaching = {row.teacher for row in self.table} - set(self.students)
        return tuple(name for name in STREAMS if name in teaching)

    @property
    def views(self) -> tuple[str, ...]:
        """Views of the unlabeled images that a stream starts from."""
        seen = {STREAMS[name].view for name in (*self.teachers, *self.students)}
        return tuple(view for view in VIEWS if view in seen)

    def teach(self, stream: str, logits: torch.Tensor) -> None:
        """Take the pseudo-labels of ``stream`` (U, C, S) if any row learns from them."""
        if any(row.teacher == stream for row in self.table):
            self.labels[stream] = pseudo_label(logits, self.tau, self.criterion.regions)

    def loss(self, student: str, logits: torch.Tensor) -> torch.Tensor:
        """Sum of the student's rows; its teachers must have taught."""
        rows = [row for row in self.table if row.student == student]
        targets = [self._seen_by(student, row.teacher) for row in rows]
        losses = [row.weight * loss for row, loss in zip(rows, self.criterion.each(logits, targets), strict=True)]
        for row, loss in zip(rows, losses, strict=True):
            self.parts[row.part] = self.parts.get(row.part, 0) + loss.detach()
        total = torch.stack([row.factor * loss for row, loss in zip(rows, losses, strict=True)]).sum()
        self.unsupervised = self.unsupervised + total.detach()
        return total

    def _seen_by(self, student: str, teacher: str) -> PseudoLabel:
        """The teacher's labels of the image that ``student`` saw; students of one view share them."""
        view = STREAMS[student].view
        if view not in self.boxes:
            return self.labels[teacher]
        if (teacher, view) not in self._mixed:
            self._mixed[teacher, view] = self.labels[teacher].cutmixed(self.boxes[view])
        return self._mixed[teacher, view]

    def report(self, supervised: torch.Tensor, weight: float) -> dict[str, torch.Tensor | float]:
        """The step's values to log, still on the device; a part whose students were not drawn is 0."""
        return {
            "loss": supervised + weight * self.unsupervised,
            "loss_sup": supervised,
            **{f"loss_{part}": self.parts.get(part, supervised.new_zeros(())) for part in PARTS},
            "unsup_weight": weight,
            "confident_share": self.confident_share(),
            "agreement": self.agreement(),
        }

    def confident_share(self) -> torch.Tensor:
        """Share of the teacher's voxels whose label counts."""
        return self.labels[TEACHER].valid.float().mean()

    def agreement(self) -> torch.Tensor:
        """Share of voxels on which the assistants' labels equal the teacher's, their mean; NaN if none taught."""
        reference = self.labels[TEACHER].labels
        others = [label.labels for stream, label in self.labels.items() if stream != TEACHER]
        shares = [(labels == reference).float().mean() for labels in others]
        return torch.stack(shares).mean() if shares else self.labels[TEACHER].confidence.new_full((), torch.nan)
