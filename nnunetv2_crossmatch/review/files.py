"""Files of a review: the page, and a CSV and a JSON file beside it, all or none.

Limit: writes what ``conclusions`` found; the page is rendered in ``page``.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.errors import InputError, Problem, access_problem, system_reason
from nnunetv2_crossmatch.evaluation.score_files import escape_formula, files_written_together, json_number
from nnunetv2_crossmatch.report.build import check_output_file
from nnunetv2_crossmatch.review.conclusions import Conclusions, ReviewedCase
from nnunetv2_crossmatch.review.page import Origin


def paths_of(output: Path) -> tuple[Path, Path, Path]:
    """The page, the CSV and the JSON file."""
    return output, output.with_suffix(".csv"), output.with_suffix(".json")


def check_output(output: Path) -> None:
    """Raise ``InputError`` if something else than an earlier review would be replaced, before the time is spent."""
    check_output_file(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(Problem("review not written", output, "is no .html", "give a file: -o review.html"))
    taken = [path for path in paths_of(output)[1:] if path.exists() and not output.exists()]
    if taken:
        detail = "a file that is of no review would be replaced"
        raise InputError(Problem("review not written", taken[0], detail, "choose another name with -o"))


def write_files(found: Conclusions, page: str, origin: Origin, output: Path) -> None:
    """Write :func:`paths_of`; the caller holds the lock of the review.

    Raises:
        InputError: they cannot be written.
    """
    try:
        with files_written_together(paths_of(output)) as (html, table, content):
            html.write_text(page, encoding="utf-8")
            write_csv(found, table)
            content.write_text(json.dumps(as_json(found, origin), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        reason = system_reason(error)
        other = Problem("review not written", output, reason, "choose another file with -o")
        raise InputError(access_problem(error, output) or other) from error


def as_json(found: Conclusions, origin: Origin) -> dict[str, Any]:
    """Content of the JSON file: numbers, null for undefined ones."""
    return {
        "written_by": f"nnunetv2_crossmatch {version('nnunetv2_crossmatch')}",
        "dataset": origin.dataset,
        "model": origin.model,
        "command": origin.command,
        "calibration": asdict(found.calibration) if found.calibration else None,
        "labeled_cases": len(found.labeled),
        "left_out": list(found.left_out),
        "failed": [str(problem) for problem in found.failed],
        "label_next": [{"case": one.result.case, "why": one.why} for one in found.chosen],
        "cases": {one.result.case: case_as_json(one, found.in_ml) for one in found.cases},
    }


def case_as_json(one: ReviewedCase, in_ml: bool) -> dict[str, Any]:
    """All numbers of a case but the features of the encoder."""
    result = one.result
    classes = {
        name: {**asdict(each), "largest": json_number(each.largest), "volume_z": json_number(one.z[name])}
        | ({"volume_ml": each.voxels * result.voxel_ml} if in_ml else {})
        for name, each in result.classes.items()
    }
    return {
        "uncertainty": one.uncertainty,
        "expected_dice": asdict(one.expected) if one.expected else None,
        "disagreement": result.disagreement,
        "surface_entropy": json_number(result.entropy),
        "unsure_surface_share": json_number(result.unsure),
        "classes": classes,
        "notes": list(one.notes),
    }


def write_csv(found: Conclusions, path: Path) -> None:
    """Write a row per case, worst first; an undefined number is an empty field."""
    names = list(found.cases[0].result.classes)
    fields = ("voxels", "components", "largest", "borders")
    head = ["case", "label_next", "uncertainty", "expected_dice", "low", "high"]
    head += [*found.kinds, "surface_entropy", "unsure_surface_share"]
    head += [f"{name} {field}" for name in names for field in ("volume_z", *(["volume_ml"] * found.in_ml), *fields)]
    order = {one.result.case: place for place, one in enumerate(found.chosen, 1)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*map(escape_formula, head), "notes"])
        for one in found.cases:
            cells = (*case_cells(one, order.get(one.result.case, ""), found.in_ml), "; ".join(one.notes))
            writer.writerow(
                ["" if cell is None else escape_formula(cell) if isinstance(cell, str) else cell for cell in cells]
            )


def case_cells(one: ReviewedCase, place: int | str, in_ml: bool) -> list[Any]:
    """Cells of a row before its notes."""
    content, result = case_as_json(one, in_ml), one.result
    expected = content["expected_dice"] or dict.fromkeys(("dice", "low", "high"))
    disagreement = [sum(values) / len(values) for values in result.disagreement.values()]
    cells = [result.case, place, one.uncertainty, *(expected[key] for key in ("dice", "low", "high")), *disagreement]
    cells += [content["surface_entropy"], content["unsure_surface_share"]]
    for each in content["classes"].values():
        volume = [each["volume_ml"]] if in_ml else []
        cells += [each["volume_z"], *volume, *(each[key] for key in ("voxels", "components", "largest", "borders"))]
    return cells
