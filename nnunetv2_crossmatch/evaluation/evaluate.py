"""Evaluation of a folder of predictions against a folder of references, both in nnU-Net's format; returns ``Scores``.

Limit: this module pairs files and calls the measures. ``segmentations`` reads and checks files, ``metrics`` computes
the measures, ``score_files`` writes the results.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.evaluation.metrics import (
    MM_DISTANCE_MEASURES,
    OVERLAP_MEASURES,
    VOXEL_DISTANCE_MEASURES,
    Measures,
    apply_literature_convention,
    compute_measures,
)
from nnunetv2_crossmatch.evaluation.scores import Scores
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, find_reader, read_label_scheme, read_pair

CONVERSION_RECORD = "conversion.json"


@dataclass(frozen=True)
class CaseScores:
    """Measures of one case, one per class, and whether the file's header gave the spacing."""

    measures: tuple[Measures, ...]
    spacing_in_header: bool


@dataclass(frozen=True)
class Pairing:
    """Cases that can be scored (name to prediction and reference), and the cases without a partner on either side."""

    pairs: dict[str, tuple[Path, Path]]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def evaluate_folder(
    reference: Path,
    predictions: Path,
    dataset_json: Path | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
    literature: bool = False,
    allow_missing: bool = False,
    processes: int = default_num_processes,
) -> Scores:
    """Score every prediction that has a reference, class by class.

    Args:
        reference, predictions: folders with files of equal names and with the file ending of ``dataset.json``.
        dataset_json: file with classes, ignore label and file ending; None takes the one in ``predictions``, or the
            one in the folder that contains ``reference``.
        spacing_mm: voxel size (z, y, x) of all cases instead of the headers'.
        literature: count an empty prediction as 0 in every measure, as the published tables do.
        allow_missing: skip references without a prediction instead of raising.
        processes: number of threads; each scores one case at a time (reading and measuring release the GIL).

    Raises:
        InputError: lists every missing prediction, damaged file, differing grid and unknown label of the run.
    """
    dataset_json = dataset_json or find_dataset_json(reference, predictions)
    scheme = read_label_scheme(dataset_json)
    pairing = pair_files(reference, predictions, scheme.file_ending)
    problems = [] if allow_missing else missing_prediction_problems(pairing, predictions, scheme.file_ending)
    results = score_cases(pairing, scheme, spacing_mm, processes, problems)
    records = [folder / CONVERSION_RECORD for folder in (*dataset_folder_candidates(reference), dataset_json.parent)]
    notes = () if spacing_mm is not None else millimetre_notes(pairing, results, records)
    measures = (*OVERLAP_MEASURES, *VOXEL_DISTANCE_MEASURES, *(() if notes else MM_DISTANCE_MEASURES))
    return assemble_scores(pairing, scheme, results, measures, literature, notes)


def find_dataset_json(reference: Path, predictions: Path) -> Path:
    """The ``dataset.json`` that nnU-Net writes next to its predictions, or that of the data set of the reference.

    Raises:
        InputError: neither file exists.
    """
    candidates = [folder / "dataset.json" for folder in (predictions, *dataset_folder_candidates(reference))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    detail = f"looked for {' and '.join(map(str, candidates))}"
    raise InputError(Problem("no dataset.json", "", detail, "say which data set it is: -d ID or -djfile FILE"))


def dataset_folder_candidates(reference: Path) -> tuple[Path, ...]:
    """Folders that may be the data set's: the parent of ``reference`` and, if that is a link, of its target."""
    return tuple(dict.fromkeys((reference.absolute().parent, reference.resolve().parent)))


def pair_files(reference: Path, predictions: Path, file_ending: str) -> Pairing:
    """Match predictions and references by file name.

    Raises:
        InputError: a folder is missing or has no such files, or the folders have no file name in common.
    """
    files_or_problems = [segmentation_files(folder, file_ending) for folder in (reference, predictions)]
    raise_if_any([result for result in files_or_problems if isinstance(result, Problem)])
    references, predicted = (result for result in files_or_problems if isinstance(result, dict))
    pairs = {case: (predicted[case], file) for case, file in references.items() if case in predicted}
    if not pairs:
        detail = f"none of its {len(predicted)} files has the name of one of the {len(references)} in {reference}"
        raise InputError(Problem("no case in common", predictions, detail, "name predictions like their references"))
    missing, extra = references.keys() - pairs.keys(), predicted.keys() - pairs.keys()
    return Pairing(pairs, tuple(sorted(missing)), tuple(sorted(extra)))


def missing_prediction_problems(pairing: Pairing, predictions: Path, file_ending: str) -> list[Problem]:
    """One problem for each reference that has no prediction."""
    fix = "predict it, or score the others with --allow-missing"
    files = [predictions / f"{case}{file_ending}" for case in pairing.missing]
    return [Problem("prediction missing", file, "the reference has this case", fix) for file in files]


def segmentation_files(folder: Path, file_ending: str) -> dict[str, Path] | Problem:
    """Map case name to file for the visible files of ``folder``; a ``Problem`` if there is none."""
    if not folder.is_dir():
        return Problem("folder missing", folder, "no such folder", "check -r, -p and --compare")
    files = sorted(file for file in folder.iterdir() if file.name.endswith(file_ending) and file.name[0] != ".")
    if not files:
        detail = f"it holds no file that ends with {file_ending}"
        return Problem("empty folder", folder, detail, "check -r, -p and --compare, and file_ending in dataset.json")
    return {file.name.removesuffix(file_ending): file for file in files}


def score_cases(
    pairing: Pairing,
    scheme: LabelScheme,
    spacing_mm: Sequence[float] | None,
    processes: int,
    problems: Sequence[Problem] = (),
) -> list[CaseScores]:
    """Scores of all cases in the order of ``pairing.pairs``, with a progress bar on stderr.

    Raises:
        InputError: lists ``problems``, found by the caller, and those of all cases.
    """
    reader = find_reader(scheme, next(iter(pairing.pairs.values()))[1])
    score = functools.partial(score_case, reader=reader, scheme=scheme, spacing_mm=spacing_mm)
    results = thread_map(
        score, pairing.pairs.values(), max_workers=processes, tqdm_class=tqdm, desc="evaluate", unit="case"
    )
    refused = [result for result in results if isinstance(result, InputError)]
    raise_if_any([*problems, *(problem for error in refused for problem in error.problems)])
    return results


def score_case(
    files: tuple[Path, Path], reader: BaseReaderWriter, scheme: LabelScheme, spacing_mm: Sequence[float] | None
) -> CaseScores | InputError:
    """Measures of one case (prediction, reference); an ``InputError`` is returned, so that the other cases are read."""
    try:
        pair = read_pair(*files, reader, scheme)
    except InputError as error:
        return error
    spacing = pair.spacing if spacing_mm is None else tuple(spacing_mm[axis] for axis in pair.axes)
    measures = (
        compute_measures(np.isin(pair.prediction, values), np.isin(pair.reference, values), spacing)
        for values in scheme.classes.values()
    )
    return CaseScores(tuple(measures), pair.spacing_in_header)


def millimetre_notes(pairing: Pairing, results: list[CaseScores], records: Sequence[Path]) -> tuple[str, ...]:
    """Note with the reason why the scores contain no mm; empty if the spacing of all cases is measured."""
    if not all(result.spacing_in_header for result in results):
        return ("Distances in mm left out: the file format carries no spacing (--spacing Z Y X gives it).",)
    nominal = {case for record in records if record.is_file() for case in cases_with_nominal_spacing(record)}
    count = len(nominal & pairing.pairs.keys())
    if not count:
        return ()
    which = f"the spacing of {count} of {len(pairing.pairs)} cases is nominal in {CONVERSION_RECORD}"
    return (f"Distances in mm left out: {which} (--spacing Z Y X gives it).",)


def cases_with_nominal_spacing(record: Path) -> set[str]:
    """Cases whose spacing is marked as nominal, not measured, in a conversion record.

    Raises:
        InputError: the record cannot be read.
    """
    try:
        cases = json.loads(record.read_text(encoding="utf-8"))["cases"]
        return {case for case, facts in cases.items() if facts["spacing_is_nominal"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"{type(error).__name__}: {error}"
        fix = "convert the data set again, or give --spacing Z Y X"
        raise InputError(Problem("unreadable conversion record", record, detail, fix)) from error


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
