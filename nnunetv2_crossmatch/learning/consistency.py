"""What consistency losses are made of: noise, uncertainty, distances of two predictions, and how a weight rises.

Limit: of given images and probabilities; a method says which networks they come from.
Shapes: N images, C channels, S spatial axes; probabilities in float32 or better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from nnunetv2_crossmatch.learning.exchange import joined_sum
from nnunetv2_crossmatch.learning.losses import SMOOTH

LARGEST_NOISE = 2.0  # in standard deviations of the noise; UA-MT's released code: 0.2 of 0.1
LEAST_PROBABILITY = 1e-6  # added before a logarithm; UA-MT's released code


def gaussian_ramp(t: float) -> float:
    """exp(-5 (1 - t)^2) up to 1 at ``t`` = 1, where it stays (Laine and Aila, ICLR 2017)."""
    return math.exp(-5 * (1 - min(t, 1.0)) ** 2)


def noisy(images: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """``images`` (N, C, S) with clipped Gaussian noise, of ``scale`` times the deviation of each image and channel."""
    drawn = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + scale * deviation(images) * drawn.clamp(-LARGEST_NOISE, LARGEST_NOISE)


def deviation(images: torch.Tensor) -> torch.Tensor:
    """Standard deviation (N, C, 1, ...) of each image and channel."""
    axes = tuple(range(2, images.ndim))
    return images.std(axes, correction=0, keepdim=True)


def of_size_one(noise: torch.Tensor) -> torch.Tensor:
    """``noise`` (N, C, S) divided by the root mean square of each sample."""
    return noise / noise.square().mean(tuple(range(1, noise.ndim)), keepdim=True).sqrt()


def worst_direction(gradient: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The direction of ``gradient`` (N, C, S) in size 1; ``first`` for samples whose gradient is 0 or not finite."""
    largest = gradient.abs().amax(tuple(range(1, gradient.ndim)), keepdim=True)
    usable = largest.isfinite() & (largest > 0)
    scaled = torch.where(usable, gradient / largest, first)  # whose squares neither overflow nor vanish
    return of_size_one(scaled)


def entropy(probability: torch.Tensor, regions: bool) -> torch.Tensor:
    """Entropy in nats of each voxel (N, S), or of each voxel and region (N, C, S)."""
    inside = -probability * torch.log(probability + LEAST_PROBABILITY)
    if not regions:
        return inside.sum(1)
    outside = 1 - probability
    return inside - outside * torch.log(outside + LEAST_PROBABILITY)


def divergence(p: torch.Tensor, q: torch.Tensor, regions: bool) -> torch.Tensor:
    """Kullback-Leibler divergence of ``q`` from ``p`` of each voxel (N, S), or of each voxel and region (N, C, S).

    Probabilities are drawn a hundredth towards the uniform distribution, so that no logarithm is infinite (PyMIC).
    """
    uniform = 1 / 2 if regions else 1 / p.shape[1]
    p, q = (0.99 * each + 0.01 * uniform for each in (p, q))
    inside = p * torch.log(p / q)
    return inside + (1 - p) * torch.log((1 - p) / (1 - q)) if regions else inside.sum(1)


def squared_distance(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over images, channels and voxels."""
    return (p - q).square().mean()


def soft_dice(p: torch.Tensor, q: torch.Tensor, classes: Sequence[int], distributed: bool) -> torch.Tensor:
    """1 - (2 sum pq + s) / (sum p^2 + sum q^2 + s) over images and voxels, averaged over ``classes``; p, q (N, C, S).

    Computed as sum (p - q)^2 / (sum p^2 + sum q^2 + s), which is exact where both are nearly equal.
    """
    axes, p, q = (0, *range(2, p.ndim)), p[:, classes], q[:, classes]
    sums = torch.stack([(p - q).square().sum(axes), (p.square() + q.square()).sum(axes)])
    apart, size = joined_sum(sums, distributed)
    return (apart / (size + SMOOTH)).mean()


def weighted_mean(values: torch.Tensor, weights: torch.Tensor, distributed: bool) -> torch.Tensor:
    """Mean of ``values`` (N, C, S) with ``weights`` (N, S) or (N, C, S), over all processes if ``distributed``.

    It is 0 where all weights are.
    """
    weights = (weights if weights.ndim == values.ndim else weights[:, None]).expand_as(values)
    total, count = joined_sum(torch.stack([(values * weights).sum(), weights.sum()]), distributed)
    return total / count.clamp(min=1e-8)
