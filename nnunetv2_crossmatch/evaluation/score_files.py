"""Scores as people and programs read them: aligned tables, Markdown, ``scores.csv``, ``scores.json``, ``scores.md``.

Limit: writes what ``scores`` holds, computes nothing.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.evaluation.scores import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Difference,
    Scores,
    Summary,
    compare,
    each_row,
)
from nnunetv2_crossmatch.folders import atomic_write

HEADINGS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_voxel": "95HD voxel",
    "asd_voxel": "ASD voxel",
    "hd95_mm": "95HD mm",
    "asd_mm": "ASD mm",
}
ROWS_ON_SCREEN = 60
LITERATURE_NOTE = (
    "Published convention: an empty prediction counts as 0 in every measure, which makes its distances look perfect."
)


@dataclass(frozen=True)
class Table:
    """A heading, the names of the columns, and the rows, all text; ``left`` columns are text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int


def number(value: float, measure: str) -> str:
    """Overlaps with four decimals (0.0001 is 0.01 %), distances with two, ``-`` for what is not defined."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if measure in ("dice", "jaccard") else f"{value:.2f}"


def case_table(scores: Scores, limit: int | None = None) -> Table:
    """One row per case and class; of more than ``limit`` rows the ones with the lowest Dice."""
    rows = [
        (case, name, *map(number, values, scores.measures), f"{empty} empty" if empty else "", values[0])
        for case, name, values, _, empty in each_row(scores)
    ]
    title = "Cases"
    if limit is not None and len(rows) > limit:
        title = f"Cases: the {limit} rows of {len(rows)} with the lowest Dice (scores.csv has all)"
        rows = sorted(rows, key=lambda row: -1 if math.isnan(row[-1]) else row[-1])[:limit]
    columns = ("case", "class", *(HEADINGS[name] for name in scores.measures), "empty")
    shown = [row[:-1] for row in rows]
    if not any(row[-1] for row in shown):
        columns, shown = columns[:-1], [row[:-1] for row in shown]
    return Table(title, columns, tuple(shown), left=2)


def summary_table(scores: Scores) -> Table:
    """Mean, standard deviation and interval, one row per class and measure."""

    def row(group: str, name: str, of: Summary) -> tuple[str, ...]:
        between = f"{number(of.low, name)} to {number(of.high, name)}"
        counts = str(of.defined), str(of.undefined)
        return group, HEADINGS[name], *counts, number(of.mean, name), number(of.std, name), between

    rows = (row(group, name, one) for group, ones in scores.summary().items() for name, one in ones.items())
    columns = ("class", "measure", "cases", "undefined", "mean", "SD", "95 % interval")
    return Table("Mean over cases", columns, tuple(rows), left=2)


def difference_table(differences: dict[str, dict[str, Difference]], other: Path) -> Table:
    """Paired differences to another folder, one row per class and measure."""

    def row(group: str, name: str, of: Difference) -> tuple[str, ...]:
        p_value = "-" if math.isnan(of.p_value) else f"{of.p_value:.2g}"
        between = f"{number(of.low, name)} to {number(of.high, name)}"
        return group, HEADINGS[name], str(of.pairs), number(of.mean, name), between, p_value

    rows = (row(group, name, one) for group, ones in differences.items() for name, one in ones.items())
    columns = ("class", "measure", "pairs", "difference", "95 % interval", "Wilcoxon p")
    return Table(f"Difference: these predictions minus {other}", columns, tuple(rows), left=2)


def as_text(table: Table) -> str:
    """The table with aligned columns, for a terminal."""
    lines = (table.columns, *table.rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]

    def aligned(line: tuple[str, ...]) -> str:
        texts = (cell.ljust(width) for cell, width in zip(line[: table.left], widths, strict=False))
        numbers = (cell.rjust(width) for cell, width in zip(line[table.left :], widths[table.left :], strict=True))
        return "  ".join((*texts, *numbers)).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join((table.title, "", aligned(table.columns), rule, *map(aligned, table.rows)))


def as_markdown(table: Table) -> str:
    """The table in Markdown, under a heading of the second level."""
    rule = ("---" if i < table.left else "---:" for i in range(len(table.columns)))
    lines = (table.columns, tuple(rule), *table.rows)
    return "\n".join((f"## {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines)))


def remarks(scores: Scores) -> list[str]:
    """What must stand beside the numbers: convention, empty masks, what was not scored."""
    lines = [LITERATURE_NOTE] if scores.literature else []
    lines += scores.notes
    for name, counts in scores.empty_counts().items():
        found = [f"{count} x {kind}" for kind, count in counts.items() if count]
        if found:
            lines.append(f"Empty masks of {name}: {', '.join(found)}.")
    if scores.missing:
        lines.append(f"Not scored, no prediction ({len(scores.missing)}): {', '.join(scores.missing)}.")
    if scores.extra:
        lines.append(f"Not scored, no reference ({len(scores.extra)}): {', '.join(scores.extra)}.")
    return lines


def terminal(scores: Scores, other: Scores | None = None, other_folder: Path | None = None) -> str:
    """Everything for the terminal: cases, summary, difference to another folder if given, remarks."""
    tables = [case_table(scores, ROWS_ON_SCREEN), *statistics_tables(scores, other, other_folder)]
    return "\n\n".join((*map(as_text, tables), *remarks(scores)))


def statistics_tables(scores: Scores, other: Scores | None, other_folder: Path | None) -> list[Table]:
    """The summary and, where there is another folder, the differences."""
    tables = [summary_table(scores)]
    if other is not None and other_folder is not None:
        tables.append(difference_table(compare(scores, other), other_folder))
    return tables


def write_scores(
    scores: Scores, folder: Path, origin: dict[str, str], other: Scores | None = None, other_folder: Path | None = None
) -> tuple[Path, ...]:
    """Write ``scores.csv``, ``scores.json`` and ``scores.md`` into ``folder``; each appears whole or not at all.

    Args:
        origin: what was scored (``reference``, ``predictions``, ...), kept in the JSON file and named in the Markdown.

    Raises:
        InputError: the folder cannot be written to.
    """
    texts = {
        "scores.json": json.dumps(as_json(scores, origin, other, other_folder), indent=2) + "\n",
        "scores.md": markdown(scores, origin, other, other_folder),
    }
    paths = tuple(folder / name for name in ("scores.csv", *texts))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(paths[0]) as path:
            write_csv(scores, path)
        for name, text in texts.items():
            with atomic_write(folder / name) as path:
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = Problem("scores not written", folder, error.strerror or str(error), "choose another folder with -o")
        raise InputError(problem) from error
    return paths


def write_csv(scores: Scores, path: Path) -> None:
    """One row per case and class; an empty field is a measure that is not defined."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "class", *scores.measures, "prediction_voxels", "reference_voxels", "empty"))
        for case, name, values, voxels, empty in each_row(scores):
            numbers = ("" if math.isnan(value) else repr(float(value)) for value in values)
            writer.writerow((case, name, *numbers, *map(int, voxels), empty))


def markdown(scores: Scores, origin: dict[str, str], other: Scores | None, other_folder: Path | None) -> str:
    """The content of ``scores.md``: origin, summary, difference, remarks, and every case at the end."""
    head = "\n".join(("# Scores", "", *(f"- {key}: `{value}`" for key, value in origin.items())))
    tables = [*map(as_markdown, statistics_tables(scores, other, other_folder))]
    return "\n\n".join((head, *tables, *remarks(scores), as_markdown(case_table(scores)))) + "\n"


def as_json(
    scores: Scores, origin: dict[str, str], other: Scores | None = None, other_folder: Path | None = None
) -> dict[str, Any]:
    """The content of ``scores.json``: plain numbers, null for what is not defined, units in the keys."""
    cases: dict[str, dict[str, Any]] = {case: {} for case in scores.cases}
    for case, name, values, voxels, empty in each_row(scores):
        sizes = {"prediction_voxels": int(voxels[0]), "reference_voxels": int(voxels[1]), "empty": empty or None}
        cases[case][name] = {**dict(zip(scores.measures, map(plain, values), strict=True)), **sizes}
    content: dict[str, Any] = {
        "written_by": f"nnunetv2_crossmatch {version('nnunetv2_crossmatch')}",
        **origin,
        "convention": "literature: an empty prediction is 0" if scores.literature else "an empty mask has no distance",
        "interval": {
            "method": "BCa bootstrap over cases",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "notes": list(scores.notes),
        "missing_predictions": list(scores.missing),
        "extra_predictions": list(scores.extra),
        "empty_masks": scores.empty_counts(),
        "summary": records(scores.summary()),
        "cases": cases,
    }
    if other is not None:
        content["difference"] = {"minus": str(other_folder), **records(compare(scores, other))}
    return content


def records(statistics: dict[str, dict[str, Summary]] | dict[str, dict[str, Difference]]) -> dict[str, Any]:
    """Statistics as plain dictionaries, named like their fields."""
    return {
        group: {name: {key: plain(value) for key, value in vars(one).items()} for name, one in ones.items()}
        for group, ones in statistics.items()
    }


def plain(value: float) -> float | int | None:
    """A number that JSON knows; None for NaN."""
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(value)
