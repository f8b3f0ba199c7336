"""Which cases to label next: those that the model is unsure of, far apart from each other.

Greedy k-center (Sener and Savarese, ICLR 2018) on the encoder's pooled features, weighted by the rank of the
uncertainty. Limit: knows the unlabeled cases only; one like a labeled case may be chosen if the model is unsure of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from nnunetv2_crossmatch.evaluation.metrics import FloatArray


@dataclass(frozen=True)
class Choice:
    """A chosen case by its index; its place in the order of uncertainty, 1 is the most unsure.

    ``nearest`` is the index of the nearest case chosen before, ``distance`` that to it over the largest distance of any
    two cases; None for the first one, and without features.
    """

    index: int
    place: int
    nearest: int | None = None
    distance: float | None = None


def choose(uncertainty: Sequence[float], features: Sequence[Sequence[float]], count: int) -> list[Choice]:
    """At most ``count`` cases, the best first.

    The first is the most unsure one. Each next has the largest product of the rank of its uncertainty and its distance
    to those chosen before. Without features it is the order of uncertainty.

    Args:
        uncertainty: of each case.
        features: of each case, all of one length; empty ones if there are none.
        count: how many.
    """
    ranks = rankdata(uncertainty, "max") / len(uncertainty)
    places = rankdata([-value for value in uncertainty], "min").astype(int).tolist()
    apart = _distances(np.asarray(features, np.float64))
    chosen = [Choice(int(ranks.argmax()), 1)]
    while len(chosen) < min(count, len(ranks)):
        chosen.append(_next(ranks, apart, chosen, places))
    return chosen[:count]


def _next(ranks: FloatArray, apart: FloatArray, chosen: list[Choice], places: list[int]) -> Choice:
    taken = [one.index for one in chosen]
    distance = apart[:, taken].min(axis=1)
    value = ranks * distance if apart.any() else ranks.copy()
    value[taken] = -1
    index = int(value.argmax())
    if not apart.any():
        return Choice(index, places[index])
    return Choice(index, places[index], taken[int(apart[index, taken].argmin())], float(distance[index]))


def _distances(features: FloatArray) -> FloatArray:
    """Distances (n, n) of the standardized features, 0 to 1; all 0 without features."""
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    squares = (scaled**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * scaled @ scaled.T, 0))
    np.fill_diagonal(distances, 0)
    return distances / (distances.max() or 1)
