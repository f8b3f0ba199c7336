"""The results that the CrossMatch paper publishes for LA and ACDC, and caveats of a comparison with own results.

Limit: a table only; whether a comparison is fair is left to the reader. ``published.csv`` contains Tables I and II:
Dice and Jaccard in percent, distances in voxels, means over the cases of one run with its final weights.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from nnunetv2_crossmatch.evaluation.scores import Scores

COLUMNS = {
    "dice": ("Dice %", 100),
    "jaccard": ("Jaccard %", 100),
    "hd95_voxel": ("95HD voxel", 1),
    "asd_voxel": ("ASD voxel", 1),
}
"""Measures of the tables: heading, and the factor from the unit of :class:`Measures` to that of the tables."""

PUBLISHED_TEST_CASES = {
    "LA": "the 20 test cases",
    "ACDC": "the validation set, as the paper says; the authors' code scores the 10 validation patients",
}
"""Cases that the published tables are computed on. Sources: paper, IV-A1; released code."""
DISTANCE_CAVEAT = (
    "Distances are in voxels, ASD runs from prediction to reference only, and in the published code an empty "
    "prediction scores 0 in every measure, which flatters its distances."
)
SINGLE_RUN_CAVEAT = (
    "Each published row is one run, without an interval. Independent runs of the authors' code on LA with 8 labeled "
    "cases did not reach the printed Dice of 91.33 (86.08 was reported): compare with your own supervised training on "
    "the same labeled cases, over several seeds."
)
PROTOCOL_CAVEATS = {
    "LA": "The tables use volumes that are cropped around the reference atrium, test cases included. Scores on whole "
    "scans do not compare with them.",
    "ACDC": "Published ACDC results are from the test patients in some papers, from the validation patients in others.",
}
TRAINING_ROLES = ("labeled", "unlabeled")


@dataclass(frozen=True)
class TableRow:
    """One row of the table: method, number of labeled cases or patients, and the measures as text."""

    method: str
    labeled: str
    measures: tuple[str, ...]
    is_own: bool = False


@dataclass(frozen=True)
class PublishedComparison:
    """Published rows and own rows, and the caveats of the comparison."""

    data_set: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    caveats: tuple[str, ...]


def compare_with_published(record: Mapping[str, Any], scores: Mapping[str, Scores]) -> PublishedComparison | None:
    """The table for a data set that a converter of this package made from LA or ACDC; ``None`` for any other data set.

    Args:
        record: content of ``conversion.json``.
        scores: own results by name; at least one.
    """
    command = f"{record.get('command', '')} "
    data_set = next((name for name in PUBLISHED_TEST_CASES if f"convert_{name} " in command), None)
    if data_set is None:
        return None
    count = count_labeled_patients(record)
    rows = [row for row in published_rows(data_set) if row.labeled == str(count)]
    others = () if rows else (f"The tables have no row for {count} labeled; all rows of CrossMatch are shown.",)
    if not rows:
        rows = [row for row in published_rows(data_set) if row.method == "CrossMatch"]
    fully_supervised = max(published_rows(data_set), key=lambda row: int(row.labeled))
    own = [TableRow(name, str(count), format_own_measures(one), is_own=True) for name, one in scores.items()]
    ordered = sorted([*rows, *own], key=lambda row: float(row.measures[0].replace("-", "0")))
    caveats = (*others, *comparison_caveats(data_set, record, next(iter(scores.values()))))
    return PublishedComparison(
        data_set, tuple(heading for heading, _ in COLUMNS.values()), (*ordered, fully_supervised), caveats
    )


def published_rows(data_set: str) -> list[TableRow]:
    """All rows of the paper for ``LA`` or ``ACDC``."""
    with files("nnunetv2_crossmatch.evaluation").joinpath("published.csv").open(encoding="utf-8") as file:
        table = [row for row in csv.reader(file) if row[0] == data_set]
    return [TableRow(method, labeled, tuple(measures)) for _, method, labeled, *measures in table]


def count_labeled_patients(record: Mapping[str, Any]) -> int:
    """Number of labeled patients of a converted data set (for LA: cases)."""
    return len({case.get("patient") for case in record["cases"].values() if case.get("role") == "labeled"})


def format_own_measures(scores: Scores) -> tuple[str, ...]:
    """Means over cases in the units of the tables, as text; ``-`` for an undefined mean."""
    summary = scores.summary()[scores.groups[-1]]
    values = [summary[name].mean * factor for name, (_, factor) in COLUMNS.items()]
    return tuple("-" if value != value else f"{value:.2f}" for value in values)


def comparison_caveats(data_set: str, record: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    """Reasons why these scores may not compare with the published tables, one or two sentences each."""
    roles = [record["cases"].get(case, {}).get("role", "unknown") for case in scores.cases]
    counted = {role: roles.count(role) for role in dict.fromkeys(roles)}
    listed = ", ".join(f"{count} {role}" for role, count in counted.items())
    yield f"The tables are over {PUBLISHED_TEST_CASES[data_set]}. Scored here, by role in the conversion: {listed}."
    trained_on = sum(counted.get(role, 0) for role in TRAINING_ROLES)
    if trained_on:
        yield f"{trained_on} of the scored cases belong to the training set: this does not compare with any table."
    yield PROTOCOL_CAVEATS[data_set]
    yield from (f"From the conversion: {caveat}." for caveat in record.get("caveats") or ())
    yield DISTANCE_CAVEAT
    if not scores.literature and any(counts["prediction"] for counts in scores.empty_mask_counts().values()):
        yield "Empty predictions have no distance here; --literature counts them as the tables do."
    yield SINGLE_RUN_CAVEAT
