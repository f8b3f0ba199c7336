"""Expected Dice of a case without a reference, learned from held-out labeled cases.

A straight line from an uncertainty to Dice, and the spread of what the line misses in cases that it has not seen
(leave-one-out; Lei et al., Distribution-free predictive inference for regression, JASA 2018). Limit: holds for cases
like the held-out ones; a scanner that these do not know makes it worthless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 6
COVERAGE = 0.8
"""Share of the cases whose Dice the interval holds; fewer held-out cases would not do for a larger one."""


@dataclass(frozen=True)
class ExpectedDice:
    """Dice with its interval, all 0 to 1; ``beyond``: the case is less or more sure than every held-out one."""

    dice: float
    low: float
    high: float
    beyond: bool


@dataclass(frozen=True)
class Calibration:
    """``intercept + slope * uncertainty``, give or take ``margin``, learned from ``cases`` of these uncertainties."""

    intercept: float
    slope: float
    margin: float
    lowest: float
    highest: float
    cases: int

    def expect(self, uncertainty: float) -> ExpectedDice:
        """Expected Dice of a case; beyond the held-out cases it is that of the nearest of them."""
        near = min(max(uncertainty, self.lowest), self.highest)
        value = self.intercept + self.slope * near
        dice, low, high = (min(max(one, 0.0), 1.0) for one in (value, value - self.margin, value + self.margin))
        return ExpectedDice(dice, low, high, near != uncertainty)


def calibrate(uncertainties: Sequence[float], dice: Sequence[float]) -> Calibration | None:
    """Learn from held-out cases; None for fewer than :data:`FEWEST` of them.

    A line that would rise is replaced by the mean: such an uncertainty tells nothing.
    """
    x, y = np.asarray(uncertainties, np.float64), np.asarray(dice, np.float64)
    if len(x) < FEWEST:
        return None
    missed = sorted(abs(y[i] - _value(_line(np.delete(x, i), np.delete(y, i)), x[i])) for i in range(len(x)))
    rank = min(len(x), math.ceil(COVERAGE * (len(x) + 1)))
    intercept, slope = _line(x, y)
    return Calibration(intercept, slope, float(missed[rank - 1]), float(x.min()), float(x.max()), len(x))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    spread = x - x.mean()
    slope = float((spread * y).sum() / (spread**2).sum()) if spread.any() else 0.0
    slope = min(slope, 0.0)
    return float(y.mean() - slope * x.mean()), slope


def _value(line: tuple[float, float], x: float) -> float:
    return line[0] + line[1] * x
