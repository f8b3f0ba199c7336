"""Skip connections that are joined anew in the backward pass instead of being held until then.

The first convolution of a decoder stage holds its input: the upsampled features beside the skip. With several streams
the skips are as many copies of features that the encoder holds anyway, each times a factor per channel.
Limit: eager mode; a compiler decides for itself what to compute twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

Level = Callable[[], torch.Tensor]
"""Makes the features of one level (N, C, S), the same at each call."""


def as_is(features: torch.Tensor) -> Level:
    """The level whose features are ``features``."""
    return lambda: features


def stacked(levels: Sequence[Level]) -> Level:
    """The level whose rows are those of ``levels``, one after the other."""
    return lambda: torch.cat([level() for level in levels])


def joined(stage: Callable[[torch.Tensor], torch.Tensor], upsampled: torch.Tensor, skip: Level) -> torch.Tensor:
    """``stage`` of ``upsampled`` and ``skip()``, joined along the channels; what is held is ``upsampled`` alone.

    It is let go as soon as the backward pass has joined it again, so that the graph can be gone through once only.
    """
    together = torch.cat((upsampled, skip()), dim=1)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return stage(together)
    held, place, shape = [upsampled.detach()], together.data_ptr(), together.shape

    def again() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat((held.pop(), skip()), dim=1)

    def pack(saved: torch.Tensor) -> object:
        return again if saved.data_ptr() == place and saved.shape == shape else saved

    def unpack(packed: Any) -> torch.Tensor:
        return again() if packed is again else packed

    with saved_tensors_hooks(pack, unpack):
        return stage(together)
