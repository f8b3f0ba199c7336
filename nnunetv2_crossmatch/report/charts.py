"""Charts of scores: a dot per case and class, and paired Dice of two sets of predictions.

Limit: plots the values of :class:`scores.Scores`; returns figures and saves nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2_crossmatch.evaluation.metrics import FloatArray
from nnunetv2_crossmatch.evaluation.score_files import MEASURE_HEADINGS
from nnunetv2_crossmatch.evaluation.scores import FOREGROUND_MEAN, Scores, summarize
from nnunetv2_crossmatch.report.text import legend_text, plain_text

# Okabe and Ito's vermilion and blue: safe for colour blindness, and similar to the red and blue of the contours.
COLOURS = ("#d55e00", "#0072b2")
BETTER_COLOUR, WORSE_COLOUR = "#00756a", "#b0306a"
MARKERS = ("o", "s")
TEXT_COLOUR, GRID_COLOUR = "#3c4043", "#e3e5e8"
MAX_PAIR_PANELS = 8
LEGEND_LINE_LENGTH = 28  # characters; this many of the widest ones fit into a narrow chart


def group_label(group: str) -> str:
    """Label of a class, or of the mean over classes, in charts and tables."""
    return "mean of classes" if group == FOREGROUND_MEAN else group


def main_distance_measure(scores: Scores) -> str:
    """Name of the 95HD in mm if mm are known, else of the 95HD in voxels."""
    return "hd95_mm" if "hd95_mm" in scores.measures else "hd95_voxel"


def plot_cases(scores: Mapping[str, Scores], narrow: bool = False) -> Figure:
    """Plot Dice and 95HD of every case, a row per class and set of predictions, with mean and 95 % interval.

    Args:
        scores: name to scores of one or two sets of predictions with equal classes.
        narrow: place the two measures below each other, for small screens.
    """
    first = next(iter(scores.values()))
    rows = len(first.groups) * len(scores)
    height = 0.42 * rows + 0.95
    size = (4.2, 2 * height + 0.5) if narrow else (9.6, height + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    shape = (2, 1) if narrow else (1, 2)
    panels = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    for axes, measure in zip(panels, ("dice", main_distance_measure(first)), strict=True):
        _plot_measure(axes, scores, measure)
    if len(scores) > 1:
        handles = panels[0].collections[:: len(first.groups)]
        labels = [legend_text(textwrap.fill(plain_text(name), LEGEND_LINE_LENGTH)) for name in scores]
        columns = 1 if narrow else len(labels)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=10)
    return figure


def _plot_measure(axes: Axes, scores: Mapping[str, Scores], measure: str) -> None:
    groups = next(iter(scores.values())).groups
    for which, one in enumerate(scores.values()):
        offset = 0.0 if len(scores) == 1 else (which - 0.5) * 0.42
        for row, group in enumerate(groups):
            _plot_group(axes, one.per_case(group, measure), row + offset, which)
    axes.set_yticks(range(len(groups)), [plain_text(group_label(group)) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(MEASURE_HEADINGS[measure])
    low, high = axes.get_xlim()
    axes.set_xlim((low, 1.005) if measure == "dice" else (min(0.0, low), high))
    _style_axes(axes)
    axes.grid(axis="x", color=GRID_COLOUR)


def _plot_group(axes: Axes, values: FloatArray, height: float, which: int) -> None:
    """Plot the dots of one class, jittered so that equal values stay visible, and their mean with its interval."""
    spread = np.random.default_rng(0).uniform(-0.13, 0.13, len(values))
    colour = COLOURS[which]
    axes.scatter(values, height + spread, 17, color=colour, alpha=0.45, linewidths=0, marker=MARKERS[which])
    summary = summarize(values)
    axes.plot([summary.low, summary.high], [height, height], color=TEXT_COLOUR, linewidth=2.2, solid_capstyle="round")
    axes.plot([summary.mean], [height], marker="D", color=TEXT_COLOUR, markerfacecolor="white", markersize=6)


def plot_pairs(first: tuple[str, Scores], second: tuple[str, Scores], narrow: bool = False) -> Figure:
    """Plot Dice of each case in both sets of predictions, joined by a line, with a panel per class.

    Lines are solid if ``first`` is better than ``second``, else dashed. At most ``MAX_PAIR_PANELS`` panels: the first
    classes and the mean.
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
        pairs = [one.per_case(group, "dice")[[one.cases.index(case) for case in common]] for one in (other, scores)]
        _plot_group_pairs(axes, np.stack(pairs), plain_text(group_label(group)))
        axes.set_xticks((0, 1), [_wrap_name(other_name), _wrap_name(name)])
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("Dice")
    return figure


def _plot_group_pairs(axes: Axes, pairs: FloatArray, title: str) -> None:
    """Plot ``pairs`` (2, case): the values of the second and of the first set of predictions."""
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    better = pairs[1] > pairs[0]
    for chosen, colour, style in ((better, BETTER_COLOUR, "-"), (~better, WORSE_COLOUR, (0, (3, 2)))):
        axes.plot([0, 1], pairs[:, chosen], color=colour, linestyle=style, alpha=0.7, linewidth=1.3, marker="o", ms=3)
    axes.set_title(f"{title}\n{np.count_nonzero(better)} of {better.size} better", fontsize=10)
    axes.set_xlim(-0.25, 1.25)
    _style_axes(axes)
    axes.grid(axis="y", color=GRID_COLOUR)


def _wrap_name(name: str, length: int = 14) -> str:
    """Wrap a long name into two lines at the separator nearest to its middle; each line is cut to ``length``."""
    breaks = [i + 1 for i, letter in enumerate(name[:-1]) if letter in "_-/. "]
    at = min(breaks, key=lambda i: abs(i - len(name) / 2)) if breaks and len(name) > length - 4 else len(name)
    lines = filter(None, (name[:at], name[at:]))
    return "\n".join(plain_text(line if len(line) <= length else f"{line[: length - 1]}…") for line in lines)


def _style_axes(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOUR)
    axes.tick_params(length=0, labelsize=9.5, colors=TEXT_COLOUR)
    axes.set_axisbelow(True)
