"""Contours of reference and predictions on slices of a case.

Limit: draws arrays; reads no image and computes no score. Uses no global state of matplotlib, so it runs in any
process or thread and needs no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.report.text import legend_text, plain_text

WINDOW_PERCENTILES = (1.0, 99.5)  # intensities shown as black and white
CROP_MARGIN = 0.35  # around the box of all contours, as a share of its size
REFERENCE_STYLE: dict[str, Any] = {"colors": "#00d83a", "linestyles": "solid", "linewidths": 1.8}
PREDICTION_STYLES: tuple[dict[str, Any], ...] = (
    {"colors": "#ff4040", "linestyles": "dashed", "linewidths": 1.6},
    {"colors": "#35b6ff", "linestyles": "dashdot", "linewidths": 1.6},
    {"colors": "#ffa51f", "linestyles": "dotted", "linewidths": 1.8},
)


@dataclass(frozen=True)
class CaseVolumes:
    """Arrays (z, y, x) of one case; label 0 is background, ``spacing`` (z, y, x) has any unit.

    An RGB image has the channels on its last axis. ``predictions`` maps the name in the legend to labels; ``title`` is
    drawn above the case.
    """

    title: str
    image: NDArray[Any]
    reference: NDArray[Any]
    predictions: Mapping[str, NDArray[Any]]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @cached_property
    def intensity_window(self) -> tuple[float, float]:
        """:func:`percentile_window` of the whole image, so that all slices of a case have the same window."""
        return percentile_window(self.image)

    @cached_property
    def crop(self) -> tuple[slice, slice]:
        """Row and column ranges around all contours of the case; the whole slice if there is no contour."""
        drawn = np.any([labels.any(axis=0) for labels in (self.reference, *self.predictions.values())], axis=0)
        return _range_with_margin(drawn.any(axis=1)), _range_with_margin(drawn.any(axis=0))

    @property
    def aspect_ratio(self) -> float:
        """Physical height over width of the crop, at most 2."""
        rows, columns = self.crop
        _, row_mm, column_mm = self.spacing
        return min(2.0, (rows.stop - rows.start) * row_mm / ((columns.stop - columns.start) * column_mm))


def worst_slice(reference: NDArray[Any], prediction: NDArray[Any]) -> int | None:
    """Index along the first axis of the slice with the most differing labels; ``None`` if all labels are equal."""
    wrong = (reference != prediction).sum(axis=(1, 2))
    return int(wrong.argmax()) if wrong.any() else None


def choose_slices(reference: NDArray[Any], predictions: Sequence[NDArray[Any]], count: int = 5) -> list[int]:
    """Indices of at most ``count`` slices, spread evenly over the labels, and of the worst slice of each prediction.

    Ascending and unique. Without any label the slices are spread over the volume.
    """
    covered = np.flatnonzero(np.any([labels.any(axis=(1, 2)) for labels in (reference, *predictions)], axis=0))
    low, high = (covered[0], covered[-1]) if covered.size else (0, len(reference) - 1)
    spread = np.linspace(low, high, count + 2)[1:-1].round().astype(int)
    worst = (worst_slice(reference, labels) for labels in predictions)
    return sorted({*spread.tolist(), *(index for index in worst if index is not None)})


def percentile_window(image: NDArray[Any]) -> tuple[float, float]:
    """Intensities shown as black and white: the 1st and 99.5th percentile of the finite voxels."""
    low, high = np.percentile(image[np.isfinite(image)], WINDOW_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def draw_cases(cases: Sequence[CaseVolumes], file: Path, slices: int = 5) -> None:
    """Write a PNG with a row per case: ``slices`` slices and the worst ones, with contours.

    Columns are filled from the left; the title of the worst slice of a prediction contains the prediction's name.
    """
    chosen = [choose_slices(case.reference, list(case.predictions.values()), slices) for case in cases]
    columns = max(map(len, chosen))
    sides = [case.aspect_ratio for case in cases]
    heights = [2.1 * side + 0.62 for side in sides]
    figure = Figure(figsize=(2.1 * columns + 0.2, sum(heights) + 0.55), layout="constrained")
    rows = figure.subfigures(len(cases), 1, height_ratios=heights, squeeze=False)
    for row, case, indices in zip(rows.ravel(), cases, chosen, strict=True):
        row.suptitle(plain_text(case.title), fontsize=11, fontweight="bold", x=0.01, ha="left")
        for axes, index in zip(row.subplots(1, columns), [*indices, *[None] * (columns - len(indices))], strict=True):
            axes.set_axis_off()
            if index is not None:
                draw_slice(axes, case, index)
                axes.set_title(_slice_title(case, index), fontsize=8.5)
    legend = _legend_handles(cases[0].predictions)
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize=11)
    _save_png(figure, file, dpi=130)


def draw_slice(axes: Axes, case: CaseVolumes, index: int) -> None:
    """Draw slice ``index`` of the first axis with all contours, with physical aspect ratio and cropped to them."""
    low, high = case.intensity_window
    _, row_mm, column_mm = case.spacing
    shown = np.clip((case.image[index] - low) / (high - low), 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=row_mm / column_mm, interpolation="bicubic")
    for labels, style in _labels_with_styles(case):
        for value in np.unique(labels[index][labels[index] > 0]):
            axes.add_collection(LineCollection(label_contours(labels[index], value), **style))
    rows, columns = case.crop
    axes.set_xlim(columns.start - 0.5, columns.stop - 0.5)
    axes.set_ylim(rows.stop - 0.5, rows.start - 0.5)


def label_contours(labels: NDArray[Any], value: int) -> list[NDArray[np.float64]]:
    """Lines (point, (column, row)) around the pixels of ``value``, without borders to lower labels.

    The lower label draws a common border; drawn twice, the dashes of one line would fill the gaps of the other.
    """
    padded = np.pad(labels, 1)
    pieces: list[NDArray[np.float64]] = []
    for line in contour_generator(z=(padded == value).astype(float)).lines(0.5):
        columns, rows = np.asarray(line).T  # each point lies halfway between two pixels
        sides = [padded[end(rows).astype(int), end(columns).astype(int)] for end in (np.floor, np.ceil)]
        neighbour = np.where(sides[0] == value, sides[1], sides[0])
        drawn_before = np.flatnonzero((neighbour > 0) & (neighbour < value))
        pieces += [piece - 1 for piece in np.split(np.asarray(line), drawn_before) if len(piece) > 1]
    return pieces


def _labels_with_styles(case: CaseVolumes) -> list[tuple[NDArray[Any], dict[str, Any]]]:
    drawn = [(case.reference, REFERENCE_STYLE)]
    return drawn + list(zip(case.predictions.values(), PREDICTION_STYLES, strict=False))


def _legend_handles(names: Mapping[str, Any]) -> list[Line2D]:
    styles = dict(zip(["reference", *names], [REFERENCE_STYLE, *PREDICTION_STYLES], strict=False))
    return [
        Line2D(
            [],
            [],
            color=style["colors"],
            linestyle=style["linestyles"],
            linewidth=2.2,
            label=legend_text(plain_text(name)),
        )
        for name, style in styles.items()
    ]


def _slice_title(case: CaseVolumes, index: int) -> str:
    erring = [name for name, labels in case.predictions.items() if worst_slice(case.reference, labels) == index]
    return f"slice {index}" + (f"\nworst: {plain_text(', '.join(erring))}" if erring else "\n")


def _range_with_margin(drawn: NDArray[np.bool_]) -> slice:
    inside = np.flatnonzero(drawn)
    if not inside.size:
        return slice(0, drawn.size)
    margin = max(4, round(CROP_MARGIN * (inside[-1] - inside[0] + 1)))
    return slice(int(max(0, inside[0] - margin)), int(min(drawn.size, inside[-1] + 1 + margin)))


def _save_png(figure: Figure, file: Path, dpi: int) -> None:
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
