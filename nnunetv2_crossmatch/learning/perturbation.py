"""Feature perturbation: dropout of the features that the encoder hands to the decoder, drawn first, applied later.

All three kinds are an affine map of the features, so a drawn perturbation is a scale and a shift that can be replayed;
where they differ from value to value, what is held is one bool for each.
Source: CrossMatch, III-C and Fig. 5; alpha dropout: Klambauer et al., Self-Normalizing Neural Networks (2017).
Limit: perturbs lists of feature maps; the table of a method says which stream gets which perturbation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

SELU_NEGATIVE_SATURATION = -1.7580993408473766  # -lambda * alpha of SELU: where alpha dropout puts dropped values


class Perturbation(NamedTuple):
    """``features * scale + shift``; both broadcast against the features of one level, no shift means 0."""

    scale: torch.Tensor
    shift: torch.Tensor | None


class ValueMask(NamedTuple):
    """``features * gain + offset`` where ``kept`` (bool, of one level's shape), the constant ``dropped`` elsewhere."""

    kept: torch.Tensor
    gain: float
    offset: float
    dropped: float

    @property
    def scale(self) -> torch.Tensor:
        """As in :class:`Perturbation`."""
        return self.gain * self.kept.float()

    @property
    def shift(self) -> torch.Tensor:
        """As in :class:`Perturbation`."""
        return torch.where(self.kept, self.offset, self.dropped)


@dataclass(frozen=True)
class FeatureDropout:
    """Dropout on the skips and the bottleneck.

    Attributes:
        rate: probability that a channel ("channel", "featurealpha") or a value ("alpha") is dropped.
        kind: "channel" is Dropout2d/3d, "alpha" AlphaDropout, "featurealpha" FeatureAlphaDropout of torch.
        levels: "all", or "bottleneck" for the last level alone.
    """

    rate: float
    kind: str = "channel"
    levels: str = "all"

    def draw(
        self, shapes: Sequence[Sequence[int]], generator: torch.Generator, device: torch.device
    ) -> list[Perturbation | ValueMask | None]:
        """One perturbation per level for features of ``shapes`` (each N, C, S), bottleneck last; None: untouched."""
        skipped = len(shapes) - 1 if self.levels == "bottleneck" else 0
        drawn = [self._draw_level(shape, generator, device) for shape in shapes[skipped:]]
        return [*([None] * skipped), *drawn]

    def _draw_level(
        self, shape: Sequence[int], generator: torch.Generator, device: torch.device
    ) -> Perturbation | ValueMask:
        size = tuple(shape) if self.kind == "alpha" else (*shape[:2], *(1 for _ in shape[2:]))
        kept = torch.rand(size, generator=generator, device=device) >= self.rate
        keep_rate = 1 - self.rate
        if self.kind == "channel":
            return Perturbation(kept.float() / keep_rate, None)
        gain = (keep_rate + SELU_NEGATIVE_SATURATION**2 * keep_rate * self.rate) ** -0.5
        offset = -gain * self.rate * SELU_NEGATIVE_SATURATION
        if self.kind == "alpha":
            dropped = np.float32(gain * SELU_NEGATIVE_SATURATION) + np.float32(offset)  # as float32 tensors add it
            return ValueMask(kept, gain, offset, float(dropped))
        return Perturbation(gain * kept.float(), gain * SELU_NEGATIVE_SATURATION * (1 - kept.float()) + offset)


def perturbed(
    features: list[torch.Tensor], drawn: Sequence[Perturbation | ValueMask | None] | None
) -> list[torch.Tensor]:
    """``features`` with the perturbation of each level applied, in their own dtype; the same list for None."""
    if drawn is None:
        return features
    return [_apply(level, perturbation) for level, perturbation in zip(features, drawn, strict=True)]


def _apply(features: torch.Tensor, perturbation: Perturbation | ValueMask | None) -> torch.Tensor:
    # The cast keeps half-precision features half: a float32 factor would promote them, and the whole decoder with them.
    if perturbation is None:
        return features
    if isinstance(perturbation, ValueMask):
        kept, gain, offset, dropped = perturbation
        return torch.where(kept, features * gain + offset, dropped)
    scaled = features * perturbation.scale.to(features.dtype)
    return scaled if perturbation.shift is None else scaled + perturbation.shift.to(features.dtype)
