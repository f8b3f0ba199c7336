"""Stands for the host's loader in loader workers, which import no more than this."""

from __future__ import annotations

import torch


class Draws:
    """Each batch holds the next ``count`` torch draws of the process that makes it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __next__(self) -> dict:
        return {"data": torch.rand(self.count, 1, dtype=torch.float64), "target": 0}
