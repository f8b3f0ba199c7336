"""Conversion of a folder in a published layout to a raw nnU-Net data set with labeled and unlabeled cases.

Limit: everything specific to a data set (layouts, labels, reading) is in its :class:`~.cases.SourceDataset`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.dataset_conversion.cases import Case, ConversionJob, FoundCases, SourceDataset
from nnunetv2_crossmatch.dataset_conversion.checks import NO_FOREGROUND
from nnunetv2_crossmatch.dataset_conversion.splits import ROLES, SPLITS_FORMAT, assign_roles, read_splits
from nnunetv2_crossmatch.dataset_conversion.workers import convert_cases
from nnunetv2_crossmatch.dataset_conversion.writing import (
    FOLDER_ENDINGS,
    check_disk_space,
    disk_errors_reported,
    new_dataset_name,
    write_dataset_json,
    write_splits,
)
from nnunetv2_crossmatch.errors import InputError, Problem, command_line, raise_if_any
from nnunetv2_crossmatch.folders import atomic_folder, check_names, exclusive, raw_folder, write_json

RECORD_FILE = "conversion.json"
DEFAULT_PROCESSES = min(8, os.cpu_count() or 1)
NAMES_SHOWN = 5

Record = dict[str, Any]


def make_parser(dataset: SourceDataset, description: str, examples: str) -> argparse.ArgumentParser:
    """Argument parser with the options of all converters."""
    arguments = argparse.ArgumentParser(
        description=description,
        epilog=f"{SPLITS_FORMAT}\n\nExample:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = arguments.add_argument
    add("-i", dest="folder", type=Path, required=True, metavar="FOLDER", help=f"folder of {dataset.expected_files}")
    add("-d", dest="dataset_id", type=int, required=True, metavar="ID", help=f"free id, for DatasetID_{dataset.name}")
    add(
        "--labeled",
        type=int,
        metavar="N",
        help="labeled patients: the published list where there is one for N, else the first N training patients",
    )
    add("--splits", type=Path, default=dataset.shipped_splits, metavar="FILE", help="your own split lists (form below)")
    add("--layout", choices=sorted(dataset.finders), help="needed only where the folder holds both layouts")
    add("--allow-missing", action="store_true", help="go on without the listed cases that the folder lacks")
    add("-np", dest="processes", type=_positive_int, default=DEFAULT_PROCESSES, help="processes (default: %(default)s)")
    return arguments


def convert(dataset: SourceDataset, options: argparse.Namespace) -> Path:
    """Convert a data set with the options of :func:`make_parser`; returns the folder of the new raw data set.

    Raises:
        InputError: contains all problems; the target folder is not created then.
    """
    id_of_all_names = raw_folder() / f"Dataset{options.dataset_id:03d}"
    with disk_errors_reported(needed=0), exclusive(id_of_all_names):
        return _convert(dataset, options)


def _convert(dataset: SourceDataset, options: argparse.Namespace) -> Path:
    target = raw_folder() / new_dataset_name(options.dataset_id, dataset.name)
    found = _find_cases(dataset, options.folder, options.layout)
    lists = read_splits(options.splits, options.labeled, dataset.patient_of)
    patients = {case.identifier: case.patient for case in found.cases}
    roles, missing = assign_roles(patients, lists, found.incomplete, options.allow_missing, options.folder)
    files = [file for case in found.cases for file in case.sources(roles[case.identifier])]
    needed = check_disk_space(sum(file.stat().st_size for file in files if file.is_file()))
    with disk_errors_reported(needed), atomic_folder(target) as folder:
        jobs = [
            ConversionJob(case, roles[case.identifier], len(dataset.labels), dataset.read_case, folder)
            for case in found.cases
        ]
        record = _new_record(dataset, options, target.name, missing, caveat=dataset.caveats.get(found.cases[0].layout))
        record["cases"] = convert_cases(jobs, options.processes)
        record["folds"] = _write_metadata(dataset, folder, record)
        write_json(folder / RECORD_FILE, record)
    _print_summary(target, record)
    plan = ("nnUNetv2_plan_and_preprocess", "-d", options.dataset_id, "--verify_dataset_integrity")
    print(f"Next: {command_line(*plan)}")
    return target


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _find_cases(dataset: SourceDataset, folder: Path, layout: str | None) -> FoundCases:
    if not folder.is_dir():
        raise InputError(Problem("folder missing", folder, "given with -i", "check the path"))
    found = {name: find(folder) for name, find in dataset.finders.items() if layout in (None, name)}
    nonempty = {name: content for name, content in found.items() if content.cases}
    if len(nonempty) > 1:
        detail = f"it holds the layouts {' and '.join(nonempty)}"
        raise InputError(Problem("two layouts", folder, detail, "choose one with --layout"))
    if not nonempty:
        incomplete = ", ".join(name for content in found.values() for name in content.incomplete)
        detail = f"expected {dataset.expected_files}" + (f"; missing: {incomplete}" if incomplete else "")
        raise InputError(Problem("no case", folder, detail, "give the folder that holds the cases"))
    (content,) = nonempty.values()
    check_names(file for case in content.cases for file in (case.image, case.label) if file)
    raise_if_any(_doubled_problems(content.cases))
    return content


def _doubled_problems(cases: Sequence[Case]) -> list[Problem]:
    """Cases of one name in two places: both would be written to one file."""
    places: dict[str, list[Case]] = {}
    for case in cases:
        places.setdefault(case.identifier, []).append(case)
    fix = "move one of them out of the folder"
    return [
        Problem("case found twice", found[0].image, f"{name} is also {found[1].image}", fix)
        for name, found in places.items()
        if len(found) > 1
    ]


def _write_metadata(dataset: SourceDataset, folder: Path, record: Record) -> int:
    """Write dataset.json and the folds of the labeled cases; returns the number of folds."""
    labeled = {name: entry for name, entry in record["cases"].items() if entry["role"] == "labeled"}
    if all(NO_FOREGROUND in entry["notes"] for entry in labeled.values()):
        fix = "check the labels, or label other cases (--splits FILE)"
        raise InputError(Problem("no foreground in any labeled case", "", ", ".join(labeled), fix))
    folds = write_splits(folder, record["dataset"], {name: entry["patient"] for name, entry in labeled.items()})
    write_dataset_json(
        folder,
        len(labeled),
        dataset.channel,
        dataset.labels,
        dataset_name=dataset.name,
        reference=dataset.reference,
        license="see reference",
        converted_by=dataset.command,
    )
    return folds


def _new_record(
    dataset: SourceDataset, options: argparse.Namespace, name: str, missing: Sequence[str], caveat: str | None
) -> Record:
    return {
        "dataset": name,
        "command": command_line(dataset.command, *sys.argv[1:]),
        "package_version": version("nnunetv2_crossmatch"),
        "splits": str(options.splits.absolute()),
        "caveats": [caveat] if caveat else [],
        "missing": list(missing),
    }


def _print_summary(target: Path, record: Record) -> None:
    """Print the number of cases per role; print warnings to stderr."""
    print(f"{target.name} written to {target}")
    entries: Mapping[str, Mapping[str, Any]] = record["cases"]
    for role in ROLES:
        patients = [entry["patient"] for entry in entries.values() if entry["role"] == role]
        if patients:
            print(
                f"  {role:9} {len(patients):4} cases of {len(set(patients)):3} patients  images{FOLDER_ENDINGS[role]}"
            )
    for warning in _warnings(record):
        print(f"warning: {warning}", file=sys.stderr)


def _warnings(record: Record) -> list[str]:
    by_note: dict[str, list[str]] = {}
    for name, entry in record["cases"].items():
        for note in entry["notes"]:
            by_note.setdefault(note, []).append(name)
    warnings = [f"{note} ({_shortened(names)})" for note, names in by_note.items()]
    if record["missing"]:
        warnings.append(f"skipped, since the folder lacks them: {_shortened(record['missing'])}")
    if record["folds"] == 0:
        warnings.append("one labeled patient cannot be split for cross-validation: train with fold all")
    return [*warnings, *record["caveats"]]


def _shortened(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return f"{len(names)}: {', '.join(names[:NAMES_SHOWN])}{more}"
