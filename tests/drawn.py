"""What a trainer drew for its steps, as plain values: the one place of the tests that reaches into a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import StreamTable


@dataclass(frozen=True)
class Draw:
    """The draws of one step.

    Attributes:
        boxes: CutMix boxes by strong view, one or None for each unlabeled image.
        kept: by perturbed stream and level, what the dropout keeps (bool, broadcasts against the features); None
            where the level is not perturbed.
        students: streams that learn.
        orientations: of the samples of the strong views.
        donors: by strong view, the labeled image of each box, or None.
        flips: of the weak view, whose mean labels it.
    """

    boxes: dict[str, list]
    kept: dict[str, list[torch.Tensor | None]]
    students: frozenset[str]
    orientations: dict[str, list] = field(default_factory=dict)
    donors: dict[str, list] = field(default_factory=dict)
    flips: list[tuple[int, ...]] = field(default_factory=list)

    def values(self) -> tuple:
        """All of it, to be compared."""
        kept = {
            name: [level if level is None else level.tolist() for level in levels] for name, levels in self.kept.items()
        }
        return self.boxes, kept, self.students, self.orientations, self.donors, self.flips


def recorded(trainer: Any) -> list[Draw]:
    """A list to which each of the ``trainer``'s steps adds what it draws from now on."""
    draws, method = [], trainer.method
    own_draw, own_backward = method.draw, method.backward
    seen: dict[str, Any] = {}

    def draw(step: Step, table: StreamTable) -> Any:
        boxes, drawn = own_draw(step, table)
        kept = {name: [level and level.scale != 0 for level in levels] for name, levels in drawn.items()}
        seen.update(boxes=boxes, kept=kept, students=frozenset(table.students))
        return boxes, drawn

    def backward(step: Step) -> Any:
        values = own_backward(step)
        draws.append(Draw(**seen))
        return values

    method.draw, method.backward = draw, backward
    for name in ("orientations", "donors", "flips"):
        remember(method, name, seen)
    return draws


def remember(method: Any, name: str, seen: dict[str, Any]) -> None:
    """Let ``draw_<name>`` of ``method`` note what it returns."""
    own = getattr(method, f"draw_{name}")

    def draw(*arguments: Any) -> Any:
        seen[name] = own(*arguments)
        return seen[name]

    setattr(method, f"draw_{name}", draw)
