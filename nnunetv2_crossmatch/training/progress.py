"""The progress figure: one small panel per training curve.

Limit: draws given numbers. It uses no global state of matplotlib, so that it runs in any process and thread without a
display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunetv2_crossmatch.folders import atomic_write

CURVE_TITLES = {
    "loss_sup": "supervised loss",
    "loss_ip": "image perturbation loss",
    "loss_fp": "feature perturbation loss",
    "loss_tkd": "teacher distillation loss",
    "loss_dkd": "decoder distillation loss",
    "loss_unsup": "unsupervised loss",
    "loss_sup_peer": "supervised loss, second network",
    "loss_sup_linear": "supervised loss, linear decoder",
    "loss_sup_nearest": "supervised loss, nearest decoder",
    "loss_distance": "loss of the distances",
    "unsup_weight": "weight of the unlabeled part",
    "confident_share": "share of confident voxels",
    "agreement": "agreement of the streams",
    "pseudo_dice": "Dice of the pseudo-labels",
}
CURVE_COLOUR = "#1f5fa8"
LONGEST_TITLE = 33
"""Letters that leave room for the last value; a longer title, as of a class with a long name, is smaller."""


def draw_curves(curves: Mapping[str, Sequence[float]], file: Path, columns: int = 4) -> None:
    """Write a PNG with one small panel per curve, a value per epoch, at most ``columns`` in a row.

    NaN leaves a gap; lengths may differ.
    """
    shown = {name: np.asarray(values, float) for name, values in curves.items() if len(values)}
    with rc_context(rcParamsDefault):  # the host sets a style of its own for its figure
        figure = _curve_panels(shown, columns)
        with atomic_write(file) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def _curve_panels(shown: Mapping[str, NDArray[np.float64]], columns: int) -> Figure:
    columns = min(columns, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, values) in zip(panels, shown.items(), strict=False):
        _draw_curve(axes, CURVE_TITLES.get(name, name.replace("_", " ")), values)
        axes.set_xlim(-0.5, max(map(len, shown.values())) - 0.5)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    return figure


def _draw_curve(axes: Axes, title: str, values: NDArray[np.float64]) -> None:
    marker = "o" if len(values) < 30 else ""
    axes.plot(np.arange(len(values)), values, color=CURVE_COLOUR, linewidth=1.6, marker=marker, markersize=3)
    axes.set_title(title, fontsize=min(10, LONGEST_TITLE / len(title) * 10), loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    finite = values[np.isfinite(values)]
    if finite.size:
        axes.annotate(f"{finite[-1]:.3g}", (1, 1), xycoords="axes fraction", ha="right", va="bottom", fontsize=9)
