"""A further decoder on the encoder of a network, which brings features to a higher resolution in another way.

Limit: a module of a method, not of the network that predicts; it has no encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunetv2_crossmatch.learning.network import decoded

MODES = {"linear": {2: "bilinear", 3: "trilinear"}, "nearest": {2: "nearest", 3: "nearest"}}


class AuxiliaryDecoder(nn.Module):
    """Adopts stages and heads of ``decoder``; interpolation and a convolution in place of transposed convolutions.

    Args:
        decoder: of another network of the host.
        way: "linear" or "nearest" interpolation.
    """

    def __init__(self, decoder: Any, way: str) -> None:
        super().__init__()
        self.transpconvs = nn.ModuleList(upsampling(each, way) for each in decoder.transpconvs)
        self.stages, self.seg_layers = decoder.stages, decoder.seg_layers
        self.deep_supervision = decoder.deep_supervision

    def forward(self, features: Sequence[torch.Tensor], labeled_rows: int) -> list[torch.Tensor]:
        """Logits of ``features``, full resolution first; the lower heads see the first ``labeled_rows`` only."""
        return decoded(self, list(features), labeled_rows)[0]


def upsampling(transposed: Any, way: str) -> nn.Sequential:
    """Interpolation to the resolution of a transposed convolution, and a convolution to its channels."""
    dimensions = len(transposed.stride)
    convolution = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(
        transposed.in_channels, transposed.out_channels, 3, padding=1, bias=transposed.bias is not None
    )
    nn.init.kaiming_normal_(convolution.weight, a=0.01)  # as the host's layers
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(nn.Upsample(scale_factor=tuple(transposed.stride), mode=MODES[way][dimensions]), convolution)
