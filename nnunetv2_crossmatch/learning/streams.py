"""Streams, the ways from an unlabeled image to a prediction, and the loss rows that compare their predictions.

Limit: records. A method lists its own streams and rows; ``execution`` computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

LABELED = "labeled"
WEAK = "weak"


@dataclass(frozen=True)
class Stream:
    """``view`` of the unlabeled image, and the name of the ``perturbation`` of its features, or None."""

    view: str
    perturbation: str | None = None


@dataclass(frozen=True)
class LossRow:
    """One comparison: ``student`` learns from the pseudo-labels of ``teacher``.

    Attributes:
        part: the loss that the row belongs to and is logged under.
        student: stream that gets the gradient.
        teacher: stream whose labels are the target.
        weight: of the row within its part.
        factor: of the part within the unsupervised loss.
    """

    part: str
    student: str
    teacher: str
    weight: float
    factor: float = 1.0


@dataclass(frozen=True)
class StreamTable:
    """The unsupervised part of a method.

    Attributes:
        streams: by name. A stream stands before its students: the sequential execution needs its labels first.
        rows: of the loss.
        parts: names of the logged losses; those of ``rows`` if not given.
        labelers: streams whose labels a row needs, with or without gradient; those of ``rows`` if not given.
        labeled_before: streams whose labels are made before the others are computed, in another way.
        drawn_anew: whether each step has a table of its own, with as many students.
    """

    streams: Mapping[str, Stream]
    rows: tuple[LossRow, ...]
    parts: tuple[str, ...] = ()
    labelers: tuple[str, ...] = ()
    labeled_before: tuple[str, ...] = ()
    drawn_anew: bool = False

    def __post_init__(self) -> None:
        if not self.parts:
            object.__setattr__(self, "parts", tuple(dict.fromkeys(row.part for row in self.rows)))
        if not self.labelers:
            object.__setattr__(self, "labelers", tuple(dict.fromkeys(row.teacher for row in self.rows)))

    @property
    def students(self) -> tuple[str, ...]:
        """Streams with gradient, in the order of ``streams``."""
        learning = {row.student for row in self.rows}
        return tuple(name for name in self.streams if name in learning)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Streams without gradient whose labels a row needs."""
        teaching = {row.teacher for row in self.rows} - set(self.students)
        return tuple(name for name in self.streams if name in teaching)

    @property
    def computed_teachers(self) -> tuple[str, ...]:
        """Those of :attr:`teachers` whose labels are not made before."""
        return tuple(name for name in self.teachers if name not in self.labeled_before)

    @property
    def views(self) -> dict[str, str]:
        """View of each stream that is computed."""
        used = {*self.students, *self.computed_teachers}
        return {name: stream.view for name, stream in self.streams.items() if name in used}

    @property
    def view_order(self) -> list[str]:
        """Views that are computed, in the order of ``streams``, so that labels come before who learns from them."""
        used = set(self.views.values())
        return [view for view in dict.fromkeys(stream.view for stream in self.streams.values()) if view in used]

    def drawn(self, count: int, rng: np.random.Generator) -> StreamTable:
        """The table of ``count`` students drawn from this one; the mean over all draws is this table.

        ``parts`` and ``labelers`` stay those of the whole table, so that every step logs the same curves.

        A student is drawn with probability count / all, so its rows weigh all / count as much.
        """
        students = self._listed_students
        if count >= len(students):
            return self
        return self._with({students[i] for i in rng.choice(len(students), count, replace=False)})

    def dearest(self, count: int) -> StreamTable:
        """The table of ``count`` students that takes most memory: as many views as possible, perturbed features first.

        The views of teachers are encoded anyway.
        """
        taught = {self.streams[name].view for name in self.teachers}
        by_view: dict[str, list[str]] = {}
        for name in sorted(self._listed_students, key=lambda name: self.streams[name].perturbation is None):
            by_view.setdefault(self.streams[name].view, []).append(name)
        order = {name: (n, view in taught) for view, names in by_view.items() for n, name in enumerate(names)}
        return self if count >= len(order) else self._with(set(sorted(order, key=lambda name: order[name])[:count]))

    @property
    def _listed_students(self) -> list[str]:
        return list(dict.fromkeys(row.student for row in self.rows))

    def _with(self, students: set[str]) -> StreamTable:
        """The table of some students, whose rows weigh more by as much as they are fewer."""
        scale = len(self._listed_students) / len(students)
        rows = tuple(replace(row, weight=scale * row.weight) for row in self.rows if row.student in students)
        return replace(self, rows=rows, drawn_anew=True)
