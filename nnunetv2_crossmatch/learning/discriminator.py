"""A network that says whether maps of an image are those of a labeled one, for adversarial training.

Source: SASSNet (MICCAI 2020). Limit: one judgement per image, not per voxel.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call

WIDTHS = (64, 128, 256, 512)
SLOPE = 0.2


class Discriminator(nn.Module):
    """Convolutions of kernel 4 and stride 2, and the mean over all places.

    A padding of 2 in place of the published 1 leaves at least one place of any patch, however flat.

    Args:
        dimensions: spatial axes, 2 or 3.
        maps: channels of the maps.
        channels: of the images.
    """

    def __init__(self, dimensions: int, maps: int, channels: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d

        def halved(inputs: int, outputs: int) -> nn.Module:
            return convolution(inputs, outputs, 4, stride=2, padding=2)

        self.of_maps, self.of_images = halved(maps, WIDTHS[0]), halved(channels, WIDTHS[0])
        further = [nn.Sequential(nn.LeakyReLU(SLOPE), halved(a, b)) for a, b in pairwise(WIDTHS)]
        self.further = nn.Sequential(*further, nn.LeakyReLU(SLOPE))
        self.judge = nn.Linear(WIDTHS[-1], 2)

    def forward(self, maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2) of "unlabeled" and "labeled", of ``maps`` (N, K, S) and ``images`` (N, C, S)."""
        features = self.further(self.of_maps(maps) + self.of_images(images))
        return self.judge(features.flatten(2).mean(2))

    def fixed(self, maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """As :meth:`forward`, with gradient in ``maps`` alone."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        return functional_call(self, weights, (maps, images))
