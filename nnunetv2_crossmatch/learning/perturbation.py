"""Feature perturbation: dropout of the features that the encoder hands to the decoder, drawn first, applied later.

All three kinds are an affine map of the features, so a drawn perturbation is a scale and a shift that can be replayed.
Source: CrossMatch, III-C and Fig. 5; alpha dropout: Klambauer et al., Self-Normalizing Neural Networks (2017).
Limit: perturbs lists of feature maps; the table of a method says which stream gets which perturbation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

SELU_NEGATIVE_SATURATION = -1.7580993408473766  # -lambda * alpha of SELU: where alpha dropout puts dropped values


class Perturbation(NamedTuple):
    """``features * scale + shift``; both broadcast against the features of one level, no shift means 0."""

    scale: torch.Tensor
    shift: torch.Tensor | None


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
    ) -> list[Perturbation | None]:
        """One perturbation per level for features of ``shapes`` (each N, C, S), bottleneck last; None: untouched."""
        skipped = len(shapes) - 1 if self.levels == "bottleneck" else 0
        drawn = [self._draw_level(shape, generator, device) for shape in shapes[skipped:]]
        return [*([None] * skipped), *drawn]

    def _draw_level(self, shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Perturbation:
        size = tuple(shape) if self.kind == "alpha" else (*shape[:2], *(1 for _ in shape[2:]))
        kept = (torch.rand(size, generator=generator, device=device) >= self.rate).float()
        keep_rate = 1 - self.rate
        if self.kind == "channel":
            return Perturbation(kept / keep_rate, None)
        gain = (keep_rate + SELU_NEGATIVE_SATURATION**2 * keep_rate * self.rate) ** -0.5
        offset = -gain * self.rate * SELU_NEGATIVE_SATURATION
        return Perturbation(gain * kept, gain * SELU_NEGATIVE_SATURATION * (1 - kept) + offset)


def perturbed(features: list[torch.Tensor], drawn: Sequence[Perturbation | None] | None) -> list[torch.Tensor]:
    """``features`` with the perturbation of each level applied, in their own dtype; the same list for None."""
    if drawn is None:
        return features
    return [_apply(level, perturbation) for level, perturbation in zip(features, drawn, strict=True)]


def _apply(features: torch.Tensor, perturbation: Perturbation | None) -> torch.Tensor:
    # The cast keeps half-precision features half: a float32 factor would promote them, and the whole decoder with them.
    if perturbation is None:
        return features
    scaled = features * perturbation.scale.to(features.dtype)
    return scaled if perturbation.shift is None else scaled + perturbation.shift.to(features.dtype)
