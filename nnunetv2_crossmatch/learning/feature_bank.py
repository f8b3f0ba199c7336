"""A bank of features of voxels by kind, of bounded size, and how alike other voxels are to its rows.

Source: CAML (MICCAI 2023). Limit: holds what it is given; the method says which voxels these are.
Shapes: K kinds, V voxels of each, F features; as in ``voxels``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from nnunetv2_crossmatch.learning.exchange import gathered
from nnunetv2_crossmatch.learning.pseudo_labels import in_float
from nnunetv2_crossmatch.learning.voxels import WIDTH, Voxels

SHARPNESS = 0.1  # temperature of the likeness; the authors' released code
EMPTY = -1e4  # in place of the likeness to a row that is not filled yet


def bank_rows(megabytes: float, kinds: int) -> int:
    """Rows of each kind in a bank of that size."""
    return int(megabytes * 2**20 / (kinds * WIDTH * 4))


class FeatureBank(nn.Module):
    """A ring: what is added takes the place of what was added the longest ago.

    Attributes:
        rows: (K, R, F).
        filled: (K, R), 1 where there is a row.
    """

    rows: torch.Tensor
    filled: torch.Tensor

    def __init__(self, kinds: int, rows: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(kinds, rows, WIDTH))
        self.register_buffer("filled", torch.zeros(kinds, rows, dtype=torch.uint8))

    def forward(self, voxels: torch.Tensor) -> torch.Tensor:
        """Softmax (K V, K R) of the cosines of ``voxels`` (K, V, F) and all rows."""
        with torch.autocast(voxels.device.type, enabled=False):
            first, second = (functional.normalize(in_float(each).flatten(0, 1), dim=1) for each in (voxels, self.rows))
            cosines = (first @ second.T / SHARPNESS).masked_fill(self.filled.flatten() == 0, EMPTY)
            return torch.softmax(cosines, 1)

    @torch.no_grad()
    def add(self, voxels: Voxels, turn: int, distributed: bool) -> None:
        """Put the real ``voxels`` of all processes into the rows whose ``turn`` it is, in every process alike."""
        rows, real = (gathered(each, distributed, 1) for each in (voxels.rows, voxels.real.byte()))
        size = self.filled.shape[1]
        count = min(rows.shape[1], size)
        places = (torch.arange(count, device=rows.device) + turn * count) % size
        rows, real = rows[:, :count], real[:, :count]
        self.rows[:, places] = torch.where(real[..., None] > 0, rows.to(self.rows), self.rows[:, places])
        self.filled[:, places] |= real
