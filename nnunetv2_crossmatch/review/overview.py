"""Positions of the overview: a dot per case, its volume against its uncertainty, as numbers for an SVG of the page.

Limit: computes positions; the template draws them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from nnunetv2_crossmatch.review.conclusions import Conclusions
from nnunetv2_crossmatch.review.labeled_cases import volume

LEFT, RIGHT, TOP, BOTTOM = 52.0, 28.0, 14.0, 46.0
WIDE, NARROW = (760.0, 380.0), (360.0, 340.0)


@dataclass(frozen=True)
class Axis:
    """A linear axis from ``start`` to ``end`` of the picture; ``ticks`` are positions with their labels."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...] = ()

    def place(self, value: float) -> float:
        """Position of ``value``, with one decimal."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class Dot:
    """A case's position, its place in the order of uncertainty, and its place among those to label next, or 0."""

    x: float
    y: float
    place: int
    chosen: int


@dataclass(frozen=True)
class Overview:
    """One drawing; ``usual`` are the ends of the range of the labeled cases' volumes along x, None without any."""

    width: float
    height: float
    x: Axis
    y: Axis
    usual: tuple[float, float] | None
    dots: tuple[Dot, ...]


def overview(found: Conclusions, size: tuple[float, float] = WIDE) -> Overview:
    """The overview of all cases, chosen ones last, so that they lie above the others."""
    volumes = [volume(one.result, None, found.in_ml) for one in found.cases]
    labeled = [volume(one, None, found.in_ml) for one in found.labeled]
    x = axis([*volumes, *labeled], LEFT, size[0] - RIGHT)
    y = axis([one.uncertainty for one in found.cases], size[1] - BOTTOM, TOP)
    order = {one.result.case: place for place, one in enumerate(found.chosen, 1)}
    dots = [
        Dot(x.place(v), y.place(one.uncertainty), place, order.get(one.result.case, 0))
        for place, (v, one) in enumerate(zip(volumes, found.cases, strict=True), 1)
    ]
    usual = (x.place(min(labeled)), x.place(max(labeled))) if labeled else None
    return Overview(*size, x, y, usual, tuple(sorted(dots, key=lambda dot: dot.chosen)))


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis from 0 to beyond the largest of ``values``, with at most five steps."""
    places = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, max([*values, 1e-9]))
    bare = Axis(0.0, float(places[-1]), start, end)
    step = float(places[1] - places[0])
    digits = max(0, math.ceil(-math.log10(step) - 1e-9) + (f"{step:.1e}"[2] != "0"))
    ticks = tuple((bare.place(float(value)), f"{value:,.{digits}f}".replace(",", " ")) for value in places)
    return Axis(bare.low, bare.high, start, end, ticks)
