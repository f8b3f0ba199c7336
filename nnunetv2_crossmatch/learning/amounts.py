"""How much of each class the labels of unlabeled images hold in the mean, per voxel that labeled volumes hold.

Limit: numbers that follow the labels; what is done about them is the caller's.
"""

from __future__ import annotations

import torch
from torch import nn

KEPT = 0.99  # of the mean in a step


class MeanAmounts(nn.Module):
    """Moving mean of the amounts, 1 at the beginning.

    Args:
        foreground: how many foreground classes or regions there are.

    Attributes:
        mean: (``foreground``,) share of the voxels that a class has over its share in the labeled volumes.
    """

    mean: torch.Tensor

    def __init__(self, foreground: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(foreground))

    @torch.no_grad()
    def update(self, found: torch.Tensor, wanted: torch.Tensor) -> None:
        """Follow the shares ``found`` of a step; a class of which labeled volumes have nothing (``wanted`` 0) stays."""
        now = torch.where(wanted > 0, found / wanted.clamp(min=1e-12), self.mean)
        self.mean.mul_(KEPT).add_((1 - KEPT) * now)

    def within(self, least: float) -> torch.Tensor:
        """1 if every mean is from ``least`` to its inverse, otherwise 0, on the device."""
        return ((self.mean >= least) & (self.mean * least <= 1)).all().to(self.mean.dtype)
