"""What a trainer drew for its steps, as plain values: the one place of the tests that reaches into a step."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    boxes: dict[str, list]
    kept: dict[str, list[torch.Tensor | None]]
    students: frozenset[str]

    def values(self) -> tuple:
        """All of it, to be compared."""
        kept = {
            name: [level if level is None else level.tolist() for level in levels] for name, levels in self.kept.items()
        }
        return self.boxes, kept, self.students


def recorded(trainer: Any) -> list[Draw]:
    """A list to which each of the ``trainer``'s steps adds what it draws from now on."""
    draws, own_draw = [], trainer.method.draw

    def draw(step: Step, table: StreamTable) -> Any:
        boxes, drawn = own_draw(step, table)
        kept = {name: [level and level.scale != 0 for level in levels] for name, levels in drawn.items()}
        draws.append(Draw(boxes, kept, frozenset(table.students)))
        return boxes, drawn

    trainer.method.draw = draw
    return draws
