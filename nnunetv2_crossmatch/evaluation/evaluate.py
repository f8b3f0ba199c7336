"""Evaluation: a folder of predictions against a folder of references, both in the host's format, gives ``Scores``.

Limit: pairs files and runs the measures; ``segmentations`` reads and refuses, ``metrics`` measures, ``score_files``
writes.
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
from nnunetv2_crossmatch.evaluation.metrics import MM_DISTANCES, OVERLAPS, VOXEL_DISTANCES, Measures, measure, published
from nnunetv2_crossmatch.evaluation.scores import Scores
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, read_label_scheme, read_pair, reader_for

CONVERSION_RECORD = "conversion.json"


@dataclass(frozen=True)
class CaseScores:
    """Measures of one case, one per class, and whether the file's header gave the spacing."""

    measures: tuple[Measures, ...]
    spacing_in_header: bool


@dataclass(frozen=True)
class Pairing:
    """Cases that can be scored, name to (prediction, reference), and what is left over on either side."""

    files: dict[str, tuple[Path, Path]]
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
        reference, predictions: folders with files of equal names, endings as in ``dataset.json``.
        dataset_json: classes, ignore label and file ending; None: the one in ``predictions``, or beside ``reference``.
        spacing_mm: voxel size (z, y, x) of all cases instead of the headers'.
        literature: count an empty prediction as 0 in every measure, as the published tables do.
        allow_missing: leave references without a prediction out instead of refusing.
        processes: cases in work at once (threads: reading and measuring release the interpreter).

    Raises:
        InputError: every missing prediction, damaged file, differing grid and unknown label of the run.
    """
    dataset_json = dataset_json or find_dataset_json(reference, predictions)
    scheme = read_label_scheme(dataset_json)
    pairing = pair_files(reference, predictions, scheme.file_ending)
    problems = [] if allow_missing else missing_problems(pairing, predictions, scheme.file_ending)
    results = score_cases(pairing, scheme, spacing_mm, processes, problems)
    records = [folder / CONVERSION_RECORD for folder in (*beside(reference), dataset_json.parent)]
    notes = () if spacing_mm is not None else why_no_mm(pairing, results, records)
    measures = (*OVERLAPS, *VOXEL_DISTANCES, *(() if notes else MM_DISTANCES))
    return gather(pairing, scheme, results, measures, literature, notes)


def find_dataset_json(reference: Path, predictions: Path) -> Path:
    """The ``dataset.json`` that the host leaves with its predictions, or that of the data set of the reference.

    Raises:
        InputError: neither exists.
    """
    candidates = [folder / "dataset.json" for folder in (predictions, *beside(reference))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    detail = f"looked for {' and '.join(map(str, candidates))}"
    raise InputError(Problem("no dataset.json", "", detail, "say which data set it is: -d ID or -djfile FILE"))


def beside(reference: Path) -> tuple[Path, ...]:
    """What may be the data set's folder: the one that holds ``reference``, and if it is a link, its target."""
    return tuple(dict.fromkeys((reference.absolute().parent, reference.resolve().parent)))


def pair_files(reference: Path, predictions: Path, file_ending: str) -> Pairing:
    """Match files by name.

    Raises:
        InputError: a folder is missing or has no such files, or no name is in both.
    """
    found = [segmentation_files(folder, file_ending) for folder in (reference, predictions)]
    raise_if_any([one for one in found if isinstance(one, Problem)])
    references, predicted = (one for one in found if isinstance(one, dict))
    common = {case: (predicted[case], file) for case, file in references.items() if case in predicted}
    if not common:
        detail = f"none of its {len(predicted)} files has the name of one of the {len(references)} in {reference}"
        raise InputError(Problem("no case in common", predictions, detail, "name predictions like their references"))
    missing, extra = references.keys() - common.keys(), predicted.keys() - common.keys()
    return Pairing(common, tuple(sorted(missing)), tuple(sorted(extra)))


def missing_problems(pairing: Pairing, predictions: Path, file_ending: str) -> list[Problem]:
    """One problem for each reference that has no prediction."""
    fix = "predict it, or score the others with --allow-missing"
    files = [predictions / f"{case}{file_ending}" for case in pairing.missing]
    return [Problem("prediction missing", file, "the reference has this case", fix) for file in files]


def segmentation_files(folder: Path, file_ending: str) -> dict[str, Path] | Problem:
    """Files of ``folder`` by case name, hidden ones left out; what is wrong if there is none."""
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
    """Scores of all cases in the order of ``pairing.files``, with a progress bar on stderr.

    Raises:
        InputError: the ``problems`` known before, and everything that is wrong with any of the cases.
    """
    reader = reader_for(scheme, next(iter(pairing.files.values()))[1])
    work = functools.partial(score_case, reader=reader, scheme=scheme, spacing_mm=spacing_mm)
    results = thread_map(
        work, pairing.files.values(), max_workers=processes, tqdm_class=tqdm, desc="evaluate", unit="case"
    )
    refused = [result for result in results if isinstance(result, InputError)]
    raise_if_any([*problems, *(problem for error in refused for problem in error.problems)])
    return results


def score_case(
    files: tuple[Path, Path], reader: BaseReaderWriter, scheme: LabelScheme, spacing_mm: Sequence[float] | None
) -> CaseScores | InputError:
    """Measures of one case (prediction, reference); bad input is returned: the other cases are looked at, too."""
    try:
        pair = read_pair(*files, reader, scheme)
    except InputError as error:
        return error
    spacing = pair.spacing if spacing_mm is None else tuple(spacing_mm[axis] for axis in pair.axes)
    measures = (
        measure(np.isin(pair.prediction, values), np.isin(pair.reference, values), spacing)
        for values in scheme.classes.values()
    )
    return CaseScores(tuple(measures), pair.spacing_in_header)


def why_no_mm(pairing: Pairing, results: list[CaseScores], records: Sequence[Path]) -> tuple[str, ...]:
    """The reason to leave millimetres out, as a note to the scores; nothing if the spacing of all cases is real."""
    if not all(result.spacing_in_header for result in results):
        return ("Distances in mm left out: the file format carries no spacing (--spacing Z Y X gives it).",)
    nominal = {case for record in records if record.is_file() for case in nominal_cases(record)}
    count = len(nominal & pairing.files.keys())
    if not count:
        return ()
    which = f"the spacing of {count} of {len(pairing.files)} cases is nominal in {CONVERSION_RECORD}"
    return (f"Distances in mm left out: {which} (--spacing Z Y X gives it).",)


def nominal_cases(record: Path) -> set[str]:
    """Cases whose spacing a conversion record marks as a stand-in.

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


def gather(
    pairing: Pairing,
    scheme: LabelScheme,
    results: list[CaseScores],
    measures: tuple[str, ...],
    literature: bool,
    notes: tuple[str, ...],
) -> Scores:
    """The records of all cases as one :class:`Scores`."""
    counted = [[published(one) if literature else one for one in result.measures] for result in results]
    return Scores(
        cases=tuple(pairing.files),
        classes=tuple(scheme.classes),
        measures=measures,
        values=np.array([[[getattr(one, name) for name in measures] for one in case] for case in counted]),
        voxels=np.array([[[one.prediction_voxels, one.reference_voxels] for one in case] for case in counted]),
        missing=pairing.missing,
        extra=pairing.extra,
        literature=literature,
        notes=notes,
    )
