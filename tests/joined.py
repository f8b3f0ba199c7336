"""Two processes put together again in this one: what each of them drew, pasted and loaded, in one batch.

Limit: two processes with equal shares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from conftest import TinyDataset
from trainers import make_trainer

from nnunetv2_crossmatch.learning.cutmix import paste
from nnunetv2_crossmatch.learning.perturbation import Perturbation
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import StreamTable

RANKS = 2


def halves(value: Any) -> list[Any]:
    """The rows of the first and of the second process: of a tensor, and of tensors in lists and dicts."""
    if isinstance(value, dict):
        parts = [halves(entry) for entry in value.values()]
        return [dict(zip(value, part, strict=True)) for part in zip(*parts, strict=True)]
    if isinstance(value, list):
        return [list(part) for part in zip(*map(halves, value), strict=True)]
    return [*value.chunk(RANKS)]


def join(values: Any) -> Any:
    """The inverse of :func:`halves`; lists of boxes, which are no tensors, are put one after the other."""
    first, second = values
    if isinstance(first, dict):
        return {key: join((first[key], second[key])) for key in first}
    if isinstance(first, Perturbation):
        return Perturbation(torch.cat([first.scale, second.scale]), None)
    if isinstance(first, list) and isinstance(first[0], torch.Tensor | Perturbation):
        return [join(pair) for pair in zip(first, second, strict=True)]
    return [*first, *second] if isinstance(first, list) else torch.cat([first, second])


def kept_parts() -> Callable[[Step], list[Step]]:
    """The steps of both processes by the step on their joined batch; their generators go on from draw to draw."""
    kept: dict[int, list[Step]] = {}

    def parts(step: Step) -> list[Step]:
        if step.index not in kept:
            images = enumerate(halves(step.images))
            kept[step.index] = [replace(step, rank=rank, images=half) for rank, half in images]
        return kept[step.index]

    return parts


def joined_trainer(tiny: TinyDataset, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One process's trainer for whole batches, which draws as each process does and pastes within each half."""
    trainer = make_trainer(tiny, name)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    draw_own, orient_own, parts = trainer.method.draw, trainer.method.draw_orientations, kept_parts()

    def draw(step: Step, table: StreamTable) -> Any:
        return [join(drawn) for drawn in zip(*(draw_own(part, table) for part in parts(step)), strict=True)]

    def draw_orientations(step: Step) -> Any:
        return join([orient_own(part) for part in parts(step)])

    def paste_in_halves(tensor: torch.Tensor, boxes: Any, *_: Any) -> torch.Tensor:
        middle = len(tensor) // RANKS
        return torch.cat([paste(tensor[:middle], boxes[:middle]), paste(tensor[middle:], boxes[middle:])])

    monkeypatch.setattr(trainer.method, "draw", draw)
    monkeypatch.setattr(trainer.method, "draw_orientations", draw_orientations)
    for module in [module for module in sys.modules.values() if getattr(module, "paste", None) is paste]:
        if module.__name__ != __name__:
            monkeypatch.setattr(module, "paste", paste_in_halves)
    return trainer


def joined_draws(trainer: Any) -> None:
    """Let a consistency method draw noise and dropout of whole batches as each process does of its half."""
    method, parts = trainer.method, kept_parts()

    def of_halves(own: Any, step: Step) -> list:
        return [own(part) for part in parts(step)]

    noisy, draw_dropout = method.noisy, method.draw_dropout

    def joined_dropout(step: Step) -> list:
        pairs = zip(*of_halves(draw_dropout, step), strict=True)
        return [first and join((first, second)) for first, second in pairs]

    method.noisy = lambda step: torch.cat(of_halves(noisy, step))
    method.draw_dropout = joined_dropout
    if hasattr(method, "draw_directions"):
        draw_directions = method.draw_directions
        method.draw_directions = lambda step: join(of_halves(draw_directions, step))


def loaded_by(rank: int, tiny: TinyDataset, name: str, steps: int) -> list[dict]:
    """The first batches of a process's loader; the unlabeled cases must be preprocessed."""
    trainer = make_trainer(tiny, name)
    trainer.local_rank, trainer.is_ddp, trainer.distributed = rank, True, True
    with patch.object(dist, "get_world_size", lambda: RANKS), patch.object(dist, "get_rank", lambda: rank):
        trainer._set_batch_size_and_oversample()
    trainer.unlabeled_cases = trainer._ready_unlabeled_cases()
    with patch.object(dist, "get_world_size", lambda: RANKS):  # stands in the run's record
        loader = trainer.get_dataloaders()[0]
    batches = [next(loader) for _ in range(steps)]
    return [{name: batch[name] for name in ("data", "target", "unlabeled")} for batch in batches]
