"""A second network as moving average of the first one, and labels by the mean over flipped images.

Source: Mean Teacher (Tarvainen and Valpola, NIPS 2017); mirroring at prediction: nnU-Net. Limit: nothing is trained.
Shapes: N images, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnunetv2_crossmatch.learning.network import full_resolution
from nnunetv2_crossmatch.learning.pseudo_labels import probabilities


def update_average(average: nn.Module, network: nn.Module, kept: float) -> None:
    """Weights of ``average`` become ``kept`` times themselves plus (1 - ``kept``) times those of ``network``."""
    get_ema_multi_avg_fn(kept)(list(average.parameters()), list(network.parameters()), 0)


def draw_flip(rng: np.random.Generator, axes: int) -> tuple[int, ...]:
    """At least one of the last ``axes`` axes; each such set is equally likely."""
    chosen = int(rng.integers(1, 2**axes))
    return tuple(axis - axes for axis in range(axes) if chosen >> axis & 1)


@torch.no_grad()
def mean_probability(
    network: nn.Module, images: torch.Tensor, flips: Sequence[tuple[int, ...]], regions: bool
) -> torch.Tensor:
    """Mean over ``flips`` of the probabilities (N, C, S) of ``images`` (N, C, S), flipped back."""
    outputs = [full_resolution(network(images.flip(flip))).flip(flip) for flip in flips]
    return torch.stack([probabilities(output, regions) for output in outputs]).mean(0)
