"""Bars of several tasks side by side: mean Dice of some rows, a dot per seed.

    python -m benchmarks.protocol.figure -o FILE --row "supervised" supervised_compute --row "FixMatch" fixmatch \
        --task "LA, 8 labeled" docs/results/la8 --task "ACDC, 3 labeled" docs/results/acdc3 docs/results/acdc3_seed1

Limit: draws what ``results.json`` of the folders says; seeds of several folders of a task are put together, and
a row that none of them has is said to be not measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2_crossmatch.errors import InputError, Problem, command
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.json_files import read_json

FORM = {"rows": {...: {"runs": [{"strict": {"dice": float, ...: object}, ...: object}], ...: object}}, ...: object}
# Of Okabe and Ito's colours, which are told apart by the colour-blind; in shades of grey they differ in lightness.
COLOURS = ("#9aa0a6", "#56b4e9", "#d55e00", "#e3e5e8", "#0072b2", "#009e73")
TEXT_COLOUR = "#3c4043"
WIDTH, HEIGHT = 2.6, 3.1  # of a panel, inches


def dice_of(folders: Sequence[Path], row: str) -> list[float]:
    """Dice of every run of a row in the folders."""
    rows = [read_json(folder / "results.json", FORM, "give folders of results", "no results") for folder in folders]
    return [run["strict"]["dice"] for one in rows for run in one["rows"].get(row, {"runs": []})["runs"]]


def draw(tasks: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A panel per task, a bar per row; ``tasks`` maps titles to rows to the Dice of each seed."""
    figure = Figure(figsize=(WIDTH * len(tasks), HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(panels, tasks.items(), strict=True):
        draw_task(axes, rows)
        axes.set_title(title, color=TEXT_COLOUR, fontsize=11)
    panels[0].set_ylabel("mean Dice, validation cases", color=TEXT_COLOUR)
    names = list(next(iter(tasks.values())))
    figure.legend(panels[0].patches, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=10)
    return figure


def draw_task(axes: Axes, rows: Mapping[str, Sequence[float]]) -> None:
    """Bars from 0 with the mean above, and a dot per seed where there are several."""
    for place, (colour, values) in enumerate(zip(COLOURS, rows.values(), strict=False)):
        height, style = mean(values) if values else 0, {"ha": "center", "color": TEXT_COLOUR, "fontsize": 10}
        axes.bar(place, height, color=colour, width=0.8)
        if values:
            axes.text(place, max(values) + 0.02, f"{height:.3f}".removeprefix("0"), **style)
        else:
            axes.text(place, 0.02, "not measured", rotation=90, **style)
        if len(values) > 1:
            axes.scatter([place] * len(values), values, s=9, color=TEXT_COLOUR, zorder=3)
    axes.set(ylim=(0, 1.05), xticks=[])
    axes.tick_params(labelcolor=TEXT_COLOUR)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FILE", help="figure to write, png or svg"
    )
    result.add_argument(
        "--row", action="append", required=True, nargs=2, metavar=("TEXT", "NAME"), help="a bar, and its row"
    )
    result.add_argument(
        "--task", action="append", required=True, nargs="+", metavar=("TITLE", "FOLDER"), help="a panel, its results"
    )
    return result


@command
def main() -> None:
    options = parser().parse_args()
    if len(options.row) > len(COLOURS):
        raise InputError(Problem("too many rows", "", f"{len(options.row)}", f"give {len(COLOURS)} at most"))
    tasks = {
        title: {text: dice_of([Path(folder) for folder in folders], row) for text, row in options.row}
        for title, *folders in options.task
    }
    with atomic_write(options.output) as temporary, mpl.rc_context({"svg.fonttype": "none"}):
        draw(tasks).savefig(temporary, dpi=120, format=options.output.suffix.removeprefix("."))


if __name__ == "__main__":
    main()
