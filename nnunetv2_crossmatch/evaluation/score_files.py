"""Output of scores: text tables for the terminal, and the files ``scores.csv``, ``scores.json`` and ``scores.md``.

Limit: formats and writes :class:`scores.Scores`; computes nothing.
"""

from __future__ import annotations

import csv
import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.errors import InputError, Problem, system_reason
from nnunetv2_crossmatch.evaluation.scores import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Difference,
    Scores,
    Summary,
    case_class_rows,
    compare_scores,
)
from nnunetv2_crossmatch.folders import exclusive, flush_and_rename, private_folder, remove_left_overs
from nnunetv2_crossmatch.json_files import read_json

WAIT_SECONDS = 60.0
MEASURE_HEADINGS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_voxel": "95HD voxel",
    "asd_voxel": "ASD voxel",
    "hd95_mm": "95HD mm",
    "asd_mm": "ASD mm",
}
SCORES_FORM = {
    "cases": {...: {...: {"prediction_voxels": int, "reference_voxels": int}}},
    "summary": {...: {...: {"mean": (float, None)}}},
    "empty_masks": {...: {"prediction": int}},
}
MAX_TERMINAL_ROWS = 60
UNDEFINED = "-"
LITERATURE_NOTE = (
    "Published convention: an empty prediction counts as 0 in every measure, which makes its distances look perfect."
)


@dataclass(frozen=True)
class Table:
    """Title, column names and rows, all strings; the first ``text_columns`` columns are text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int


def format_measure(value: float, measure: str) -> str:
    """Format an overlap with four decimals (0.0001 is 0.01 %), a distance with two, an undefined value as ``-``."""
    if math.isnan(value):
        return UNDEFINED
    return f"{value:.4f}" if measure in ("dice", "jaccard") else f"{value:.2f}"


def format_interval(statistic: Summary | Difference, measure: str) -> str:
    """The 95 % interval of a mean as ``low to high``; ``-`` for a single case, which has none."""
    if math.isnan(statistic.low):
        return UNDEFINED
    return f"{format_measure(statistic.low, measure)} to {format_measure(statistic.high, measure)}"


def make_case_table(scores: Scores, limit: int | None = None) -> Table:
    """One row per case and class; with ``limit``, at most that many rows, those with the lowest Dice."""
    rows = [
        (case, name, *map(format_measure, values, scores.measures), f"{empty} empty" if empty else "", values[0])
        for case, name, values, _, empty in case_class_rows(scores)
    ]
    title = "Cases"
    if limit is not None and len(rows) > limit:
        title = f"Cases: the {limit} rows of {len(rows)} with the lowest Dice (scores.csv has all)"
        rows = sorted(rows, key=lambda row: -1 if math.isnan(row[-1]) else row[-1])[:limit]
    columns = ("case", "class", *(MEASURE_HEADINGS[name] for name in scores.measures), "empty")
    shown = [row[:-1] for row in rows]
    if not any(row[-1] for row in shown):
        columns, shown = columns[:-1], [row[:-1] for row in shown]
    return Table(title, columns, tuple(shown), text_columns=2)


def make_summary_table(scores: Scores) -> Table:
    """Mean, standard deviation and interval, one row per class and measure."""

    def row(group: str, name: str, summary: Summary) -> tuple[str, ...]:
        counts = str(summary.defined), str(summary.undefined)
        statistics = (format_measure(value, name) for value in (summary.mean, summary.std))
        return group, MEASURE_HEADINGS[name], *counts, *statistics, format_interval(summary, name)

    rows = (row(group, name, one) for group, ones in scores.summary().items() for name, one in ones.items())
    columns = ("class", "measure", "cases", "undefined", "mean", "SD", "95 % interval")
    return Table("Mean over cases", columns, tuple(rows), text_columns=2)


def make_difference_table(differences: dict[str, dict[str, Difference]], other: Path) -> Table:
    """Paired differences to another folder, one row per class and measure."""

    def row(group: str, name: str, difference: Difference) -> tuple[str, ...]:
        p_value = UNDEFINED if math.isnan(difference.p_value) else f"{difference.p_value:.2g}"
        mean, interval = format_measure(difference.mean, name), format_interval(difference, name)
        return group, MEASURE_HEADINGS[name], str(difference.pairs), mean, interval, p_value

    rows = (row(group, name, one) for group, ones in differences.items() for name, one in ones.items())
    columns = ("class", "measure", "pairs", "difference", "95 % interval", "Wilcoxon p")
    return Table(f"Difference: these predictions minus {other}", columns, tuple(rows), text_columns=2)


def format_text_table(table: Table) -> str:
    """Format the table with aligned columns for a terminal."""
    lines = (table.columns, *(tuple(map(one_line, row)) for row in table.rows))
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]

    def aligned(line: tuple[str, ...]) -> str:
        split = table.text_columns
        texts = (cell.ljust(width) for cell, width in zip(line[:split], widths, strict=False))
        numbers = (cell.rjust(width) for cell, width in zip(line[split:], widths[split:], strict=True))
        return "  ".join((*texts, *numbers)).rstrip()

    separator = "  ".join("-" * width for width in widths)
    return "\n".join((table.title, "", aligned(table.columns), separator, *map(aligned, lines[1:])))


def format_markdown_table(table: Table) -> str:
    """Format the table as Markdown under a heading of the second level."""
    separator = ("---" if i < table.text_columns else "---:" for i in range(len(table.columns)))
    lines = (table.columns, tuple(separator), *(tuple(map(escape_markdown, row)) for row in table.rows))
    return "\n".join((f"## {one_line(table.title)}", "", *(f"| {' | '.join(line)} |" for line in lines)))


def one_line(text: str) -> str:
    """``text`` without line breaks and tabs, which would break a table."""
    return " ".join(text.split()) if set(text) & set("\n\r\t") else text


def escape_markdown(cell: str) -> str:
    """``cell`` for a Markdown table: a vertical bar would start a new column."""
    return one_line(cell).replace("|", r"\|")


def escape_formula(cell: str) -> str:
    """``cell`` for a CSV file: a spreadsheet would compute text that starts with ``=``, ``+``, ``-`` or ``@``."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def score_notes(scores: Scores) -> list[str]:
    """Remarks to print with the numbers: convention, amounts, empty masks, cases that were not scored."""
    lines = [LITERATURE_NOTE] if scores.literature else []
    lines += scores.notes
    amounts = ", ".join(f"{name} {format_measure(one, 'amount')}" for name, one in scores.amounts().items())
    lines.append(f"Amount, voxels predicted per voxel of the reference over all cases: {amounts}.")
    for name, counts in scores.empty_mask_counts().items():
        found = [f"{count} x {kind}" for kind, count in counts.items() if count]
        if found:
            lines.append(f"Empty masks of {name}: {', '.join(found)}.")
    if scores.missing:
        lines.append(f"Not scored, no prediction ({len(scores.missing)}): {', '.join(scores.missing)}.")
    if scores.extra:
        lines.append(f"Not scored, no reference ({len(scores.extra)}): {', '.join(scores.extra)}.")
    return lines


def format_for_terminal(scores: Scores, other: Scores | None = None, other_folder: Path | None = None) -> str:
    """Text for the terminal: cases, summary, difference to another folder if given, notes."""
    tables = [make_case_table(scores, MAX_TERMINAL_ROWS), *make_statistics_tables(scores, other, other_folder)]
    return "\n\n".join((*map(format_text_table, tables), *score_notes(scores)))


def make_statistics_tables(scores: Scores, other: Scores | None, other_folder: Path | None) -> list[Table]:
    """The summary table and, if another folder is given, the table of differences."""
    tables = [make_summary_table(scores)]
    if other is not None and other_folder is not None:
        tables.append(make_difference_table(compare_scores(scores, other), other_folder))
    return tables


def write_scores(
    scores: Scores, folder: Path, origin: dict[str, str], other: Scores | None = None, other_folder: Path | None = None
) -> tuple[Path, ...]:
    """Write ``scores.csv``, ``scores.json`` and ``scores.md`` into ``folder``, all three or none.

    Another process that writes there is waited for. What a killed one left is removed.

    Args:
        origin: paths that were scored (``reference``, ``predictions``, ...), written to the JSON and Markdown files.

    Raises:
        InputError: the folder cannot be written to.
    """
    texts = {
        "scores.json": json.dumps(scores_as_json(scores, origin, other, other_folder), indent=2) + "\n",
        "scores.md": scores_as_markdown(scores, origin, other, other_folder),
    }
    paths = tuple(folder / name for name in ("scores.csv", *texts))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "scores", WAIT_SECONDS), files_written_together(paths) as (csv_path, *text_paths):
            write_csv(scores, csv_path)
            for path, text in zip(text_paths, texts.values(), strict=True):
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = Problem("scores not written", folder, system_reason(error), "choose another folder with -o")
        raise InputError(problem) from error
    return paths


@contextmanager
def files_written_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary paths, one for each of ``paths`` in one folder; all are renamed when the block succeeds.

    On an exception, in the block or while renaming, all ``paths`` are as they were before. A process that is killed
    while it renames leaves some of them, all old or all new. The caller holds a lock of ``paths``.
    """
    remove_left_overs(paths[0])
    with private_folder(paths[0]) as private:
        temporary = [private / path.name for path in paths]
        yield temporary
        backups: dict[Path, Path] = {}
        moved: list[Path] = []
        try:
            for path in filter(_is_replaceable, paths):
                backups[path] = path.replace(private / f"{path.name}.before")
            for source, path in zip(temporary, paths, strict=True):
                flush_and_rename(source, path)
                moved.append(path)
        except BaseException:
            for path in moved:
                path.unlink()
            for path, backup in backups.items():
                backup.replace(path)
            raise


def _is_replaceable(path: Path) -> bool:
    """Whether there is something in the place of a file; raises ``IsADirectoryError`` for a folder."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, f"{path.name} is a folder")
    return os.path.lexists(path)


def read_scores(file: Path) -> dict[str, Any]:
    """The content of a ``scores.json``.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    content: dict[str, Any] = read_json(file, SCORES_FORM, "evaluate again", "unusable scores")
    if not content["summary"]:
        raise InputError(Problem("unusable scores", file, "summary is empty", "evaluate again"))
    return content


def write_csv(scores: Scores, path: Path) -> None:
    """Write one row per case and class; an undefined measure is an empty field.

    Names that a spreadsheet would take for a formula get a leading apostrophe.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "class", *scores.measures, "prediction_voxels", "reference_voxels", "empty"))
        for case, name, values, voxels, empty in case_class_rows(scores):
            numbers = ("" if math.isnan(value) else repr(float(value)) for value in values)
            writer.writerow((escape_formula(case), escape_formula(name), *numbers, *map(int, voxels), empty))


def scores_as_markdown(scores: Scores, origin: dict[str, str], other: Scores | None, other_folder: Path | None) -> str:
    """Content of ``scores.md``: origin, summary, difference, notes, and the table of all cases."""
    head = "\n".join(("# Scores", "", *(f"- {key}: `{value}`" for key, value in origin.items())))
    tables = [*map(format_markdown_table, make_statistics_tables(scores, other, other_folder))]
    return "\n\n".join((head, *tables, *score_notes(scores), format_markdown_table(make_case_table(scores)))) + "\n"


def scores_as_json(
    scores: Scores, origin: dict[str, str], other: Scores | None = None, other_folder: Path | None = None
) -> dict[str, Any]:
    """Content of ``scores.json``: numbers, null for undefined measures, units in the keys."""
    cases: dict[str, dict[str, Any]] = {case: {} for case in scores.cases}
    for case, name, values, voxels, empty in case_class_rows(scores):
        sizes = {"prediction_voxels": int(voxels[0]), "reference_voxels": int(voxels[1]), "empty": empty or None}
        cases[case][name] = {**dict(zip(scores.measures, map(json_number, values), strict=True)), **sizes}
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
        "amounts": {name: json_number(one) for name, one in scores.amounts().items()},
        "empty_masks": scores.empty_mask_counts(),
        "summary": statistics_as_json(scores.summary()),
        "cases": cases,
    }
    if other is not None:
        content["difference"] = {"minus": str(other_folder), **statistics_as_json(compare_scores(scores, other))}
    return content


def statistics_as_json(statistics: dict[str, dict[str, Summary]] | dict[str, dict[str, Difference]]) -> dict[str, Any]:
    """Statistics as dictionaries; the keys are the field names."""
    return {
        group: {name: {key: json_number(value) for key, value in vars(one).items()} for name, one in ones.items()}
        for group, ones in statistics.items()
    }


def json_number(value: float) -> float | int | None:
    """``value`` as a number that JSON can represent; None for NaN."""
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(value)
