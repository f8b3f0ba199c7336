"""Averages of weights and of predictions over flips, by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.learning.moving_average import draw_flip, mean_probability, update_average


def test_three_updates_equal_a_loop_by_hand():
    average, network = (nn.Linear(3, 2).double() for _ in range(2))
    expected = [p.detach().clone() for p in average.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for p in network.parameters():
                p += torch.randn_like(p)
        update_average(average, network, 0.9)
        expected = [0.9 * a + 0.1 * p for a, p in zip(expected, network.parameters(), strict=True)]
    for after, by_hand in zip(average.parameters(), expected, strict=True):
        assert torch.allclose(after, by_hand, rtol=1e-12)


@pytest.mark.parametrize("axes", [2, 3])
def test_every_flip_but_none_is_drawn_equally_often(axes):
    rng = np.random.default_rng(0)
    counts = Counter(draw_flip(rng, axes) for _ in range(1000 * (2**axes - 1)))
    assert len(counts) == 2**axes - 1
    assert all(set(flip) <= set(range(-axes, 0)) for flip in counts)
    assert all(count == pytest.approx(1000, rel=0.15) for count in counts.values())


@pytest.mark.parametrize("regions", [False, True])
def test_the_mean_over_flips_is_that_of_probabilities_in_the_images_own_orientation(regions):
    """A network that is not symmetric: each voxel's logits are those of its left neighbour."""
    image = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean = mean_probability(lambda x: x.roll(1, -1), image, [(), (-1,)], regions)
    logits = image.roll(1, -1), image.roll(-1, -1)
    each = [1 / (1 + torch.exp(-z)) if regions else torch.exp(z) / torch.exp(z).sum(1, keepdim=True) for z in logits]
    assert torch.allclose(mean, (each[0] + each[1]) / 2, rtol=1e-12)
