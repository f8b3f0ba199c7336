"""The unsupervised loss of one step: pseudo-labels of its teachers, compared with the predictions of its students.

Limit: given logits only; ``execution`` decides which network they come from and in which order.
Shapes: U unlabeled images, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nnunetv2_crossmatch.learning.cutmix import Box
from nnunetv2_crossmatch.learning.losses import Criterion
from nnunetv2_crossmatch.learning.orientation import Orientation
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, probabilities
from nnunetv2_crossmatch.learning.streams import StreamTable


@dataclass
class UnsupervisedLoss:
    """Sum of the rows of a table, computed stream by stream.

    Attributes:
        table: streams and rows.
        criterion: H of the rows.
        label: makes pseudo-labels of probabilities (U, C, S).
        boxes: CutMix boxes by strong view; a pseudo-label, of the weak view, gets the boxes of its student's view.
        orientations: by strong view, of its samples before CutMix; empty: that of the weak view.
        donors: by strong view, the labeled sample that each box comes from, or None: the next unlabeled one.
        references: labels of the labeled samples; needed if any box comes from one.
        parts: losses by name, without gradient.
        total: their sum with the table's factors, without gradient.
        labels: pseudo-labels by teaching stream, before CutMix.
    """

    table: StreamTable
    criterion: Criterion
    label: Callable[[torch.Tensor], PseudoLabel]
    boxes: Mapping[str, Sequence[Box | None]] = field(default_factory=dict)
    orientations: Mapping[str, Sequence[Orientation]] = field(default_factory=dict)
    donors: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    references: PseudoLabel | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    total: torch.Tensor | float = field(default=0.0, init=False)
    labels: dict[str, PseudoLabel] = field(default_factory=dict, init=False)
    _mixed: dict[tuple[str, str], PseudoLabel] = field(default_factory=dict, init=False)

    def begin_again(self, labels: dict[str, PseudoLabel]) -> None:
        """Forget what was computed of a step that failed, but the ``labels`` that were made before it."""
        self.parts, self.total, self.labels, self._mixed = {}, 0.0, labels, {}

    @property
    def teacher_labels(self) -> PseudoLabel:
        """Pseudo-labels of the first teacher."""
        return self.labels[self.table.teachers[0]]

    def add_pseudo_labels(self, stream: str, logits: torch.Tensor) -> None:
        """Store the pseudo-labels of ``stream`` (U, C, S) if a row needs them."""
        if any(row.teacher == stream for row in self.table.rows):
            self.labels[stream] = self.label(probabilities(logits, self.criterion.regions))

    def of_student(self, student: str, logits: torch.Tensor) -> torch.Tensor:
        """Sum of the student's rows, with gradient; needs the pseudo-labels of its teachers."""
        rows = [row for row in self.table.rows if row.student == student]
        targets = [self._target(student, row.teacher) for row in rows]
        losses = [row.weight * loss for row, loss in zip(rows, self.criterion.each(logits, targets), strict=True)]
        for row, loss in zip(rows, losses, strict=True):
            self.parts[row.part] = self.parts.get(row.part, 0) + loss.detach()
        total = torch.stack([row.factor * loss for row, loss in zip(rows, losses, strict=True)]).sum()
        self.total = self.total + total.detach()
        return total

    def first_target(self, student: str) -> PseudoLabel:
        """The labels of the first of the student's rows."""
        return self._target(student, next(row.teacher for row in self.table.rows if row.student == student))

    def _target(self, student: str, teacher: str) -> PseudoLabel:
        """The teacher's labels with orientation and CutMix boxes of the student's view, whose students share them."""
        view = self.table.streams[student].view
        if view not in self.boxes:
            return self.labels[teacher]
        if (teacher, view) not in self._mixed:
            label = self.labels[teacher].for_students()
            label = label.oriented(self.orientations[view]) if view in self.orientations else label
            self._mixed[teacher, view] = label.cutmixed(self.boxes[view], self.references, self.donors.get(view, ()))
        return self._mixed[teacher, view]

    def values(self, supervised: torch.Tensor, weight: float) -> dict[str, torch.Tensor | float]:
        """The step's values to log, still on the device; a part without drawn students is 0.

        ``agreement`` is among them where several streams label.
        """
        agreement = {"agreement": self.agreement()} if len(self.table.labelers) > 1 else {}
        return {
            "loss": supervised + weight * self.total,
            "loss_sup": supervised,
            **{f"loss_{part}": self.parts.get(part, supervised.new_zeros(())) for part in self.table.parts},
            "unsup_weight": weight,
            "confident_share": self.confident_share(),
            **agreement,
        }

    def confident_share(self) -> torch.Tensor:
        """Share of voxels whose label by the first teacher counts."""
        return self.teacher_labels.valid.float().mean()

    def agreement(self) -> torch.Tensor:
        """Share of voxels on which other teaching streams agree with the first, their mean; NaN without others."""
        first = self.teacher_labels
        others = [label.labels for label in self.labels.values() if label is not first]
        shares = [(labels == first.labels).float().mean() for labels in others]
        return torch.stack(shares).mean() if shares else first.confidence.new_full((), torch.nan)
