"""Values of an epoch's steps, kept on the device until they are fetched.

Limit: scalars by name; steps of different kinds may have different names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

UNFINISHED = "unfinished_epoch"
"""Where a checkpoint's log holds the values of the steps of an epoch that was interrupted."""


class StepLog:
    """The steps of an epoch in order, ``done`` ones from before an interruption first."""

    def __init__(self, done: Iterable[Mapping[str, float]] = ()) -> None:
        self._fetched: list[dict[str, float]] = [dict(step) for step in done]
        self._waiting: list[Mapping[str, Any]] = []

    def __len__(self) -> int:
        return len(self._fetched) + len(self._waiting)

    def add(self, step: Mapping[str, Any]) -> None:
        """Add one step's scalars: tensors, arrays or numbers."""
        self._waiting.append(step)

    def fetched(self) -> list[dict[str, float]]:
        """All steps as plain numbers, float32 rounded; those on the device come in one transfer per name."""
        for names, steps in groupby(self._waiting, key=_names):
            self._fetched += _as_numbers(names, list(steps))
        self._waiting = []
        return self._fetched


def _names(step: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(step)


def _as_numbers(names: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    columns = [torch.stack([torch.as_tensor(step[name]) for step in steps]).tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
