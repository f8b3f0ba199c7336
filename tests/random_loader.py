"""Replacement of nnU-Net's loader for tests with loader workers; a separate module, so that workers import little."""

from __future__ import annotations

import torch


class RandomLoader:
    """Loader whose batches contain the next ``count`` random numbers of torch in its process."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __next__(self) -> dict:
        return {"data": torch.rand(self.count, 1, dtype=torch.float64), "target": 0}
