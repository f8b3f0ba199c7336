"""The network that judges maps, as SASSNet describes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.learning.discriminator import Discriminator


@pytest.mark.parametrize("dimensions", [2, 3])
def test_widths_are_the_published_ones_and_any_patch_is_judged(dimensions):
    network = Discriminator(dimensions, 2, 1)
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Conv3d)]
    assert sorted({each.out_channels for each in layers}) == [64, 128, 256, 512]
    for size in (1, 20):
        maps, images = torch.randn(3, 2, *[size] * dimensions), torch.randn(3, 1, *[size] * dimensions)
        assert network(maps, images).shape == (3, 2)
