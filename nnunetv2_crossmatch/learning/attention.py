"""Attention on coarse features: among the places of an image, then among the images of a batch.

Source: CAML (MICCAI 2023). Limit: what an image gets from others depends on the batch, so it is for training alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunetv2_crossmatch.errors import Problem, UnsupportedError

HEADS = 4
TOKENS = 2048  # places of an image that attend to each other, at most


class CrossSampleAttention(nn.Module):
    """Features (N, ``channels``, S) plus what they attend to: first in their image, then at their place of others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = HEADS if channels % HEADS == 0 else 1
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.places, self.images = (nn.MultiheadAttention(channels, heads, batch_first=True) for _ in range(2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """As the class says; the shape stays."""
        tokens = features.flatten(2).transpose(1, 2)
        tokens = attended(tokens, self.norms[0], self.places)
        tokens = attended(tokens.transpose(0, 1), self.norms[1], self.images).transpose(0, 1)
        return tokens.transpose(1, 2).reshape(features.shape)


def attended(tokens: torch.Tensor, norm: nn.Module, attention: nn.Module) -> torch.Tensor:
    """``tokens`` (sequences, length, channels) plus what each gets from its sequence."""
    normal = norm(tokens)
    return tokens + attention(normal, normal, normal, need_weights=False)[0]


def attention_level(network: Any, patch_size: Sequence[int]) -> int:
    """The finest features of the coarser half with at most :data:`TOKENS` places; of an unknown patch the coarsest.

    Raises:
        UnsupportedError: there are none.
    """
    if not patch_size:
        return len(network.encoder.strides) - 1
    places = [math.prod(shape[2:]) for shape in network.feature_shapes(1, patch_size)]
    if places[-1] > TOKENS:
        detail = f"its coarsest features have {places[-1]} places, and attention is among {TOKENS} at most"
        raise UnsupportedError(Problem("network not supported", "the plans", detail, "use plans with more stages"))
    return next(level for level in range(len(places) // 2, len(places)) if places[level] <= TOKENS)
