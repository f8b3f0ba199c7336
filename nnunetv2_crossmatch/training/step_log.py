"""Values of an epoch's steps, left on the device until somebody asks for them.

Limit: scalars by name, the same names in every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        """Take in one step's scalars: tensors, arrays or numbers."""
        self._waiting.append(step)

    def fetched(self) -> list[dict[str, float]]:
        """All steps as plain numbers, float32 rounded; those on the device come in one transfer per name."""
        if self._waiting:
            names = self._waiting[0].keys()
            columns = [torch.stack([torch.as_tensor(step[name]) for step in self._waiting]).tolist() for name in names]
            self._fetched += [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
            self._waiting = []
        return self._fetched
