"""Charts of scores: every case as a dot by class, and the cases of two sets of predictions in pairs.

Limit: draws :class:`scores.Scores`; computes nothing but what they offer. Figures come back unsaved.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2_crossmatch.evaluation.metrics import FloatArray
from nnunetv2_crossmatch.evaluation.score_files import HEADINGS
from nnunetv2_crossmatch.evaluation.scores import FOREGROUND_MEAN, Scores, summarize

# Okabe and Ito's vermilion and blue: told apart with any colour vision, and near the contours' red and blue.
COLOURS = ("#d55e00", "#0072b2")
BETTER, WORSE = "#00756a", "#b0306a"
SHAPES = ("o", "s")
INK, GRID = "#3c4043", "#e3e5e8"
MAX_PAIR_PANELS = 8
LEGEND_LETTERS = 28  # in a line: that many of the widest fit into a narrow chart


def label_of(group: str) -> str:
    """A class as it stands in charts and tables."""
    return "mean of classes" if group == FOREGROUND_MEAN else group


def main_distance(scores: Scores) -> str:
    """The 95HD in mm, or in voxels where mm are not known."""
    return "hd95_mm" if "hd95_mm" in scores.measures else "hd95_voxel"


def draw_dots(scores: Mapping[str, Scores], narrow: bool = False) -> Figure:
    """Dice and 95HD of every case, a row per class and set of predictions, with mean and 95 % interval.

    Args:
        scores: one or two by name, of equal classes.
        narrow: for a small screen: the two measures above each other.
    """
    first = next(iter(scores.values()))
    rows = len(first.groups) * len(scores)
    height = 0.42 * rows + 0.95
    size = (4.2, 2 * height + 0.5) if narrow else (9.6, height + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    shape = (2, 1) if narrow else (1, 2)
    panels = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    for axes, measure in zip(panels, ("dice", main_distance(first)), strict=True):
        _draw_measure(axes, scores, measure)
    if len(scores) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        labels = [textwrap.fill(name, LEGEND_LETTERS) for name in names]
        columns = 1 if narrow else len(names)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=10)
    return figure


def _draw_measure(axes: Axes, scores: Mapping[str, Scores], measure: str) -> None:
    groups = next(iter(scores.values())).groups
    for which, (name, one) in enumerate(scores.items()):
        offset = 0.0 if len(scores) == 1 else (which - 0.5) * 0.42
        for row, group in enumerate(groups):
            _draw_row(axes, one.of(group, measure), row + offset, which, name if row == 0 else "")
    axes.set_yticks(range(len(groups)), [label_of(group) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(HEADINGS[measure])
    low, high = axes.get_xlim()
    axes.set_xlim((low, 1.005) if measure == "dice" else (min(0.0, low), high))
    _calm(axes)
    axes.grid(axis="x", color=GRID)


def _draw_row(axes: Axes, values: FloatArray, height: float, which: int, label: str) -> None:
    """Dots of one class, spread a little so that equal ones are seen, and their mean with its interval."""
    spread = np.random.default_rng(0).uniform(-0.13, 0.13, len(values))
    colour = COLOURS[which]
    axes.scatter(values, height + spread, 17, color=colour, alpha=0.45, linewidths=0, marker=SHAPES[which], label=label)
    summary = summarize(values)
    axes.plot([summary.low, summary.high], [height, height], color=INK, linewidth=2.2, solid_capstyle="round")
    axes.plot([summary.mean], [height], marker="D", color=INK, markerfacecolor="white", markersize=6)


def draw_pairs(first: tuple[str, Scores], second: tuple[str, Scores], narrow: bool = False) -> Figure:
    """Dice of each case in both sets of predictions, joined by a line, a panel per class.

    Solid: ``first`` is better than ``second``; dashed: it is worse. Of many classes the first ones and the mean.
    """
    (name, scores), (other_name, other) = first, second
    groups = scores.groups if len(scores.groups) <= MAX_PAIR_PANELS else (*scores.groups[:7], scores.groups[-1])
    columns = min(len(groups), 2 if narrow else 4)
    rows = -(-len(groups) // columns)
    width = 4.2 if narrow else columns * min(4.2, 9.6 / columns)
    figure = Figure(figsize=(width, 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    common = [case for case in scores.cases if case in other.cases]
    for axes, group in zip(panels, groups, strict=False):
        pairs = [one.of(group, "dice")[[one.cases.index(case) for case in common]] for one in (other, scores)]
        _draw_group(axes, np.stack(pairs), label_of(group))
        axes.set_xticks((0, 1), [_wrapped(other_name), _wrapped(name)])
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("Dice")
    return figure


def _draw_group(axes: Axes, pairs: FloatArray, title: str) -> None:
    """``pairs`` (2, case): other, these."""
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    better = pairs[1] > pairs[0]
    for chosen, colour, style in ((better, BETTER, "-"), (~better, WORSE, (0, (3, 2)))):
        axes.plot([0, 1], pairs[:, chosen], color=colour, linestyle=style, alpha=0.7, linewidth=1.3, marker="o", ms=3)
    axes.set_title(f"{title}\n{np.count_nonzero(better)} of {better.size} better", fontsize=10)
    axes.set_xlim(-0.25, 1.25)
    _calm(axes)
    axes.grid(axis="y", color=GRID)


def _wrapped(name: str, length: int = 14) -> str:
    """A long name in two lines, broken at the separator nearest to its middle, each cut to ``length``."""
    breaks = [i + 1 for i, letter in enumerate(name[:-1]) if letter in "_-/. "]
    at = min(breaks, key=lambda i: abs(i - len(name) / 2)) if breaks and len(name) > length - 4 else len(name)
    lines = filter(None, (name[:at], name[at:]))
    return "\n".join(line if len(line) <= length else f"{line[: length - 1]}…" for line in lines)


def _calm(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, labelsize=9.5, colors=INK)
    axes.set_axisbelow(True)
