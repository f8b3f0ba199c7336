"""Pictures: contours of reference and predictions on slices of a case.

Limit: draws arrays that are handed over; reads no image and computes no score. It does without matplotlib's global
state, so that it runs in any process and thread and needs no display.
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

WINDOW = (1.0, 99.5)  # percentiles shown as black and white
MARGIN = 0.35  # shown around all contours, as a share of their box
REFERENCE_STYLE: dict[str, Any] = {"colors": "#00d83a", "linestyles": "solid", "linewidths": 1.8}
PREDICTION_STYLES: tuple[dict[str, Any], ...] = (
    {"colors": "#ff4040", "linestyles": "dashed", "linewidths": 1.6},
    {"colors": "#35b6ff", "linestyles": "dashdot", "linewidths": 1.6},
    {"colors": "#ffa51f", "linestyles": "dotted", "linewidths": 1.8},
)


@dataclass(frozen=True)
class CasePicture:
    """What is drawn of one case; all arrays (z, y, x), labels 0 for background, ``spacing`` (z, y, x) in any unit.

    A colour image has a last axis of red, green and blue. ``predictions`` maps the legend's name to labels; ``title``
    stands above the case.
    """

    title: str
    image: NDArray[Any]
    reference: NDArray[Any]
    predictions: Mapping[str, NDArray[Any]]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @cached_property
    def window(self) -> tuple[float, float]:
        """:func:`gray_window` of the whole image, so that all slices of a case are shown alike."""
        return gray_window(self.image)

    @cached_property
    def view(self) -> tuple[slice, slice]:
        """Rows and columns around all contours of the case, all of them if there is no contour."""
        drawn = np.any([labels.any(axis=0) for labels in (self.reference, *self.predictions.values())], axis=0)
        return _around(drawn.any(axis=1)), _around(drawn.any(axis=0))

    @property
    def side_ratio(self) -> float:
        """Height over width of the view, at most 2."""
        rows, columns = self.view
        _, row_mm, column_mm = self.spacing
        return min(2.0, (rows.stop - rows.start) * row_mm / ((columns.stop - columns.start) * column_mm))


def worst_slice(reference: NDArray[Any], prediction: NDArray[Any]) -> int | None:
    """Index along the first axis with the most voxels of differing label; ``None`` if all are equal."""
    wrong = (reference != prediction).sum(axis=(1, 2))
    return int(wrong.argmax()) if wrong.any() else None


def choose_slices(reference: NDArray[Any], predictions: Sequence[NDArray[Any]], count: int = 5) -> list[int]:
    """At most ``count`` slices, spread evenly over what the labels cover, and the worst slice of each prediction.

    Ascending, each once. Without any label the slices are spread over the volume.
    """
    covered = np.flatnonzero(np.any([labels.any(axis=(1, 2)) for labels in (reference, *predictions)], axis=0))
    low, high = (covered[0], covered[-1]) if covered.size else (0, len(reference) - 1)
    spread = np.linspace(low, high, count + 2)[1:-1].round().astype(int)
    worst = (worst_slice(reference, labels) for labels in predictions)
    return sorted({*spread.tolist(), *(index for index in worst if index is not None)})


def gray_window(image: NDArray[Any]) -> tuple[float, float]:
    """Intensities that are shown as black and white: the 1st and 99.5th percentile of the finite voxels."""
    low, high = np.percentile(image[np.isfinite(image)], WINDOW)
    return float(low), float(max(high, low + 1e-6))


def draw_cases(cases: Sequence[CasePicture], file: Path, slices: int = 5) -> None:
    """Write a PNG with a row per case: ``slices`` slices and the worst ones, contours of the reference and predictions.

    Columns are filled from the left; the slice on which a prediction errs most is named after it.
    """
    chosen = [choose_slices(case.reference, list(case.predictions.values()), slices) for case in cases]
    columns = max(map(len, chosen))
    sides = [case.side_ratio for case in cases]
    heights = [2.1 * side + 0.62 for side in sides]
    figure = Figure(figsize=(2.1 * columns + 0.2, sum(heights) + 0.55), layout="constrained")
    rows = figure.subfigures(len(cases), 1, height_ratios=heights, squeeze=False)
    for row, case, indices in zip(rows.ravel(), cases, chosen, strict=True):
        row.suptitle(case.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        for axes, index in zip(row.subplots(1, columns), [*indices, *[None] * (columns - len(indices))], strict=True):
            axes.set_axis_off()
            if index is not None:
                draw_slice(axes, case, index)
                axes.set_title(_slice_title(case, index), fontsize=8.5)
    legend = _legend(cases[0].predictions)
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize=11)
    _save(figure, file, dpi=130)


def draw_slice(axes: Axes, case: CasePicture, index: int) -> None:
    """Draw slice ``index`` of the first axis with all contours, in true proportions, cropped around the contours."""
    low, high = case.window
    _, row_mm, column_mm = case.spacing
    shown = np.clip((case.image[index] - low) / (high - low), 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=row_mm / column_mm, interpolation="bicubic")
    for labels, style in _layers(case):
        for value in np.unique(labels[index][labels[index] > 0]):
            axes.add_collection(LineCollection(outline(labels[index], value), **style))
    rows, columns = case.view
    axes.set_xlim(columns.start - 0.5, columns.stop - 0.5)
    axes.set_ylim(rows.stop - 0.5, rows.start - 0.5)


def outline(labels: NDArray[Any], value: int) -> list[NDArray[np.float64]]:
    """Lines (point, (column, row)) around the pixels of ``value``; borders with lower labels are left to these.

    Drawn twice, the dashes of a common border would fill each other's gaps.
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


def _layers(case: CasePicture) -> list[tuple[NDArray[Any], dict[str, Any]]]:
    drawn = [(case.reference, REFERENCE_STYLE)]
    return drawn + list(zip(case.predictions.values(), PREDICTION_STYLES, strict=False))


def _legend(names: Mapping[str, Any]) -> list[Line2D]:
    styles = dict(zip(["reference", *names], [REFERENCE_STYLE, *PREDICTION_STYLES], strict=False))
    return [
        Line2D([], [], color=style["colors"], linestyle=style["linestyles"], linewidth=2.2, label=name)
        for name, style in styles.items()
    ]


def _slice_title(case: CasePicture, index: int) -> str:
    erring = [name for name, labels in case.predictions.items() if worst_slice(case.reference, labels) == index]
    return f"slice {index}" + (f"\nworst: {', '.join(erring)}" if erring else "\n")


def _around(drawn: NDArray[np.bool_]) -> slice:
    inside = np.flatnonzero(drawn)
    if not inside.size:
        return slice(0, drawn.size)
    margin = max(4, round(MARGIN * (inside[-1] - inside[0] + 1)))
    return slice(int(max(0, inside[0] - margin)), int(min(drawn.size, inside[-1] + 1 + margin)))


def _save(figure: Figure, file: Path, dpi: int) -> None:
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
