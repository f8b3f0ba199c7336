"""Evaluation of a folder of predictions against a folder of references, both in nnU-Net's format; returns ``Scores``.

Limit: this module pairs files and calls the measures. ``segmentations`` reads and checks files, ``metrics`` computes
the measures, ``score_files`` writes the results.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from nnunetv2_crossmatch.data.raw_cases import equal_but_for_case
from nnunetv2_crossmatch.data.reader_warnings import collected_warnings, print_warnings
from nnunetv2_crossmatch.errors import InputError, Problem, command_line, raise_if_any, run_all
from nnunetv2_crossmatch.evaluation.label_schemes import dataset_folder_candidates, read_label_schemes
from nnunetv2_crossmatch.evaluation.metrics import (
    MM_DISTANCE_MEASURES,
    OVERLAP_MEASURES,
    VOXEL_DISTANCE_MEASURES,
    Measures,
    apply_literature_convention,
    compute_measures,
)
from nnunetv2_crossmatch.evaluation.scores import Scores
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, PredictionLabels, find_reader, read_pair
from nnunetv2_crossmatch.folders import DATASET_NAME, check_names
from nnunetv2_crossmatch.json_files import read_json

CONVERSION_RECORD = "conversion.json"
CONVERSION_FORM = {
    "cases": {...: {"spacing_is_nominal": bool, "role?": str, "patient?": str}},
    "command?": str,
    "caveats?": [str],
}
NAME_SUFFIX = re.compile(r"[_.-](?:[A-Za-z]+|0000)$")


@dataclass(frozen=True)
class CaseScores:
    """Measures of one case, one per class, and whether the file's header gave a spacing that was measured."""

    measures: tuple[Measures, ...]
    spacing_in_header: bool
    spacing_is_nominal: bool


@dataclass(frozen=True)
class Pairing:
    """Cases that can be scored (name to prediction and reference), and the cases without a partner on either side."""

    pairs: dict[str, tuple[Path, Path]]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes:
        spacing_mm: voxel size (z, y, x) of all cases instead of the headers'.
        literature: count an empty prediction as 0 in every measure, as the published tables do.
        allow_missing: skip references without a prediction instead of raising.
        suffixes: endings that are removed from file names, in both folders, to get the name of the case.
        processes: number of threads; each scores one case at a time (reading and measuring release the GIL).
    """

    spacing_mm: Sequence[float] | None = None
    literature: bool = False
    allow_missing: bool = False
    suffixes: Sequence[str] = ()
    processes: int = default_num_processes


def evaluate_folder(reference: Path, predictions: Path, dataset_json: Path | None = None, **options: Any) -> Scores:
    """Scores of one folder of predictions; see :func:`evaluate_folders`. ``options`` as in ``EvaluationOptions``."""
    return evaluate_folders(reference, [predictions], dataset_json, EvaluationOptions(**options))[0]


def evaluate_folders(
    reference: Path,
    predictions: Sequence[Path],
    dataset_json: Path | None = None,
    options: EvaluationOptions | None = None,
) -> list[Scores]:
    """Score every prediction that has a reference, class by class, for each folder of predictions.

    All scores have the same classes in the same order, so that they can be compared.

    Args:
        reference: folder with the references.
        predictions: folders with files of the same names, and with the file ending of ``dataset.json``.
        dataset_json: file with classes, ignore label and file ending, for references and predictions without an own
            ``dataset.json``; None: see :func:`label_schemes.read_label_schemes`.

    Raises:
        InputError: lists every missing prediction, damaged file, differing grid and unknown label of all folders.
    """
    options = options or EvaluationOptions()
    check_different_folders(reference, predictions)
    labels = read_label_schemes(reference, predictions, dataset_json)
    records = conversion_record_files(reference, dataset_json)
    steps = (
        functools.partial(_evaluate, reference, folder, one, records, options)
        for folder, one in zip(predictions, labels, strict=True)
    )
    return run_all(steps)


def check_different_folders(reference: Path, predictions: Sequence[Path]) -> None:
    """Raise :class:`InputError` if a folder would be compared with itself, which every score of 1 would hide."""
    first, *others = (folder.resolve() for folder in predictions)  # one of the others may be the reference: a bound
    doubled = [first] if first in (reference.resolve(), *others) else []
    detail, fix = "-p is also given with -r or --compare", "give different folders"
    raise_if_any([Problem("folder compared with itself", folder, detail, fix) for folder in doubled])


def _evaluate(
    reference: Path, predictions: Path, labels: PredictionLabels, records: Sequence[Path], options: EvaluationOptions
) -> Scores:
    ending = labels.scheme.file_ending
    pairing = pair_files(reference, predictions, ending, options.suffixes)
    problems = [] if options.allow_missing else missing_prediction_problems(pairing, predictions, ending)
    results = score_cases(pairing, labels, options.spacing_mm, options.processes, problems)
    notes = () if options.spacing_mm is not None else millimetre_notes(pairing, results, records)
    measures = (*OVERLAP_MEASURES, *VOXEL_DISTANCE_MEASURES, *(() if notes else MM_DISTANCE_MEASURES))
    return assemble_scores(pairing, labels.scheme, results, measures, options.literature, (*labels.notes, *notes))


def conversion_record_files(reference: Path, dataset_json: Path | None = None) -> list[Path]:
    """Existing conversion records of the data set: next to ``reference`` or ``dataset_json``, or in ``nnUNet_raw``."""
    folders = [*dataset_folder_candidates(reference), *([dataset_json.parent] if dataset_json else [])]
    raw = os.environ.get("nnUNet_raw")
    folders += [Path(raw) / folder.name for folder in folders if raw and DATASET_NAME.fullmatch(folder.name)]
    files = dict.fromkeys(folder / CONVERSION_RECORD for folder in folders)
    return [file for file in files if file.is_file()]


def pair_files(reference: Path, predictions: Path, file_ending: str, suffixes: Sequence[str] = ()) -> Pairing:
    """Match predictions and references by file name, without the given ``suffixes``.

    Raises:
        InputError: a folder is missing or has no such files, or the folders have no case in common; suffixes that
            would give common cases are named.
    """
    files_or_problems = [segmentation_files(folder, file_ending, suffixes) for folder in (reference, predictions)]
    raise_if_any([result for result in files_or_problems if isinstance(result, Problem)])
    references, predicted = (result for result in files_or_problems if isinstance(result, dict))
    pairs = {case: (predicted[case], file) for case, file in references.items() if case in predicted}
    if not pairs:
        detail = f"none of its {len(predicted)} files has the name of one of the {len(references)} in {reference}"
        raise InputError(Problem("no case in common", predictions, *_suffix_hint(detail, references, predicted)))
    missing, extra = references.keys() - pairs.keys(), predicted.keys() - pairs.keys()
    return Pairing(pairs, tuple(sorted(missing)), tuple(sorted(extra)))


def _suffix_hint(detail: str, references: Collection[str], predicted: Collection[str]) -> tuple[str, str]:
    """Detail and fix of the problem that no names are equal, with the suffixes that make most of them equal."""
    suffixes = find_suffixes(references, predicted)
    if not suffixes and (twins := equal_but_for_case(predicted, references)):
        (one, other), count = twins[0], len(twins)
        return f"{detail}; {count} differ in upper and lower case only, as {one} and {other}", "rename them"
    if not suffixes:
        return detail, "name predictions like their references"
    count = len(_without(suffixes, references) & _without(suffixes, predicted))
    options = command_line(*(f"--suffix={suffix}" for suffix in suffixes))
    return f"{detail}; without the suffix {' and '.join(suffixes)} {count} are equal", f"add {options}"


def find_suffixes(references: Collection[str], predicted: Collection[str]) -> tuple[str, ...]:
    """Suffixes, at most one per folder, whose removal gives the most common names; empty if there are none."""
    candidates = [{"", *(_name_suffix(name) for name in names)} for names in (references, predicted)]
    counts = {
        pair: len(_without(pair[:1], references) & _without(pair[1:], predicted))
        for pair in itertools.product(*candidates)
    }
    best = min(counts, key=lambda pair: (-counts[pair], len(pair[0]) + len(pair[1]), pair))
    return tuple(dict.fromkeys(filter(None, best))) if counts[best] else ()


def _without(suffixes: Sequence[str], names: Collection[str]) -> set[str]:
    return {strip_suffixes(name, suffixes) for name in names}


def _name_suffix(name: str) -> str:
    """The last part of ``name`` after a separator, if it is a word or nnU-Net's ``0000``; else an empty string."""
    match = NAME_SUFFIX.search(name)
    return match.group(0) if match else ""


def strip_suffixes(name: str, suffixes: Sequence[str]) -> str:
    """``name`` without the first of ``suffixes`` that it ends with."""
    return next((name.removesuffix(s) for s in suffixes if s and name.endswith(s) and name != s), name)


def missing_prediction_problems(pairing: Pairing, predictions: Path, file_ending: str) -> list[Problem]:
    """One problem for each reference that has no prediction."""
    fix = "predict it, or score the others with --allow-missing"
    files = [predictions / f"{case}{file_ending}" for case in pairing.missing]
    return [Problem("prediction missing", file, "the reference has this case", fix) for file in files]


def segmentation_files(folder: Path, file_ending: str, suffixes: Sequence[str] = ()) -> dict[str, Path] | Problem:
    """Map case name to file for the visible files of ``folder``; a ``Problem`` if there is none or names clash."""
    if not folder.is_dir():
        return Problem("folder missing", folder, "no such folder", "check -r, -p and --compare")
    files = sorted(file for file in folder.iterdir() if file.name.endswith(file_ending) and file.name[0] != ".")
    check_names(files)
    if not files:
        detail = f"it holds no file that ends with {file_ending}"
        return Problem("empty folder", folder, detail, "check -r, -p and --compare, and file_ending in dataset.json")
    cases: dict[str, Path] = {}
    for file in files:
        case = strip_suffixes(file.name.removesuffix(file_ending), suffixes)
        if case in cases:
            return Problem(
                "two files of one case", file, f"{cases[case]} has the same name without --suffix", "remove one"
            )
        cases[case] = file
    return cases


def score_cases(
    pairing: Pairing,
    labels: PredictionLabels,
    spacing_mm: Sequence[float] | None,
    processes: int,
    problems: Sequence[Problem] = (),
) -> list[CaseScores]:
    """Scores of all cases in the order of ``pairing.pairs``, with a progress bar on stderr.

    Raises:
        InputError: lists ``problems``, found by the caller, and those of all cases.
    """
    reader = find_reader(labels.scheme, next(iter(pairing.pairs.values()))[1])
    score = functools.partial(score_case, reader=reader, labels=labels, spacing_mm=spacing_mm)
    with collected_warnings() as found:
        results = thread_map(
            score, pairing.pairs.values(), max_workers=processes, tqdm_class=tqdm, desc="evaluate", unit="case"
        )
    files = [file for pair in pairing.pairs.values() for file in pair]
    print_warnings((text, files) for text in sorted(found))
    refused = [result for result in results if isinstance(result, InputError)]
    raise_if_any([*problems, *(problem for error in refused for problem in error.problems)])
    return results


def score_case(
    files: tuple[Path, Path], reader: BaseReaderWriter, labels: PredictionLabels, spacing_mm: Sequence[float] | None
) -> CaseScores | InputError:
    """Measures of one case (prediction, reference); an ``InputError`` is returned, so that the other cases are read."""
    try:
        pair = read_pair(*files, reader, labels)
    except InputError as error:
        return error
    spacing = pair.spacing if spacing_mm is None else tuple(spacing_mm[axis] for axis in pair.axes)
    measures = (
        compute_measures(np.isin(pair.prediction, values), np.isin(pair.reference, values), spacing)
        for values in labels.scheme.classes.values()
    )
    return CaseScores(tuple(measures), pair.spacing_in_header, pair.spacing_is_nominal)


def millimetre_notes(pairing: Pairing, results: list[CaseScores], records: Sequence[Path]) -> tuple[str, ...]:
    """Note with the reason why the scores contain no mm; empty if the spacing of all cases is measured."""
    if not all(result.spacing_in_header for result in results):
        return ("Distances in mm left out: the file format carries no spacing (--spacing Z Y X gives it).",)
    recorded = {case for record in records for case in cases_with_nominal_spacing(record)}
    marked = {case for case, result in zip(pairing.pairs, results, strict=True) if result.spacing_is_nominal}
    count = len((recorded | marked) & pairing.pairs.keys())
    if not count:
        return ()
    source = CONVERSION_RECORD if recorded & pairing.pairs.keys() else "the files' headers"
    which = f"the spacing of {count} of {len(pairing.pairs)} cases is nominal in {source}"
    return (f"Distances in mm left out: {which} (--spacing Z Y X gives it).",)


def cases_with_nominal_spacing(record: Path) -> set[str]:
    """Cases whose spacing is marked as nominal, not measured, in a conversion record.

    Raises:
        InputError: the record cannot be read.
    """
    cases = read_conversion_record(record)["cases"]
    return {case for case, facts in cases.items() if facts["spacing_is_nominal"]}


def read_conversion_record(record: Path) -> dict[str, Any]:
    """What a converter wrote about a data set.

    Raises:
        InputError: the record cannot be read.
    """
    fix = "convert the data set again, or give --spacing Z Y X"
    content: dict[str, Any] = read_json(record, CONVERSION_FORM, fix, "unreadable conversion record")
    return content


def assemble_scores(
    pairing: Pairing,
    scheme: LabelScheme,
    results: list[CaseScores],
    measures: tuple[str, ...],
    literature: bool,
    notes: tuple[str, ...],
) -> Scores:
    """Combine the scores of all cases into one :class:`Scores`."""
    reported = [
        [apply_literature_convention(one) if literature else one for one in result.measures] for result in results
    ]
    return Scores(
        cases=tuple(pairing.pairs),
        classes=tuple(scheme.classes),
        measures=measures,
        values=np.array([[[getattr(one, name) for name in measures] for one in case] for case in reported]),
        voxels=np.array([[[one.prediction_voxels, one.reference_voxels] for one in case] for case in reported]),
        missing=pairing.missing,
        extra=pairing.extra,
        literature=literature,
        notes=notes,
    )
