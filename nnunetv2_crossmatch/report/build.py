"""Building of the report: scores, pictures and the training of a model in one self-contained HTML file.

Limit: collects the results of ``evaluation``, ``case_pictures``, ``model_record`` and ``published``; ``page`` renders
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_crossmatch.data.reader_warnings import print_warnings
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any, run_all, system_reason
from nnunetv2_crossmatch.evaluation.evaluate import (
    EvaluationOptions,
    conversion_record_files,
    evaluate_folders,
    read_conversion_record,
)
from nnunetv2_crossmatch.evaluation.label_schemes import dataset_folder_candidates
from nnunetv2_crossmatch.evaluation.published import compare_with_published
from nnunetv2_crossmatch.evaluation.score_files import MEASURE_HEADINGS, WAIT_SECONDS, format_measure
from nnunetv2_crossmatch.evaluation.scores import Scores
from nnunetv2_crossmatch.folders import atomic_write, exclusive, remove_left_overs
from nnunetv2_crossmatch.report.case_pictures import (
    CaseFiles,
    case_reader,
    draw_case_surfaces,
    draw_slices,
    find_case_files,
    read_case,
    viewer_commands,
)
from nnunetv2_crossmatch.report.charts import main_distance_measure
from nnunetv2_crossmatch.report.model_record import read_model
from nnunetv2_crossmatch.report.page import CaseEntry, ReportContent, render_page

MAX_LISTED_CLASSES = 4
PAGE, PAGE_START = b"<!doctype html", 1024


@dataclass(frozen=True)
class ReportRequest:
    """Input and options of a report.

    Attributes:
        reference, predictions, other: folders of segmentations; ``other`` is compared with ``predictions``.
        options: options of the evaluation.
        images: folder of the input images; None draws contours on a black background.
        model: model folder of nnU-Net for settings and curves, or None.
        dataset_json: as for :func:`evaluate.evaluate_folders`.
        pictures: number of cases with pictures of slices, worst first.
        surfaces: number of cases with pictures of surfaces, worst first.
        command: command line that created the report, printed in its last section.
    """

    reference: Path
    predictions: Path
    options: EvaluationOptions
    other: Path | None = None
    images: Path | None = None
    model: Path | None = None
    dataset_json: Path | None = None
    pictures: int = 20
    surfaces: int = 3
    command: str = ""


def write_report(request: ReportRequest, output: Path) -> None:
    """Score, draw and write one HTML file atomically.

    Raises:
        InputError: lists all problems of segmentations, images, model and output.
    """
    content = collect_content(request, output)
    page = render_page(content, list(case_entries(content, request)), request.command)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(output, WAIT_SECONDS):
            remove_left_overs(output)
            with atomic_write(output) as path:
                path.write_text(page, encoding="utf-8")
    except OSError as error:
        fix = "choose another file with -o"
        raise InputError(Problem("report not written", output, system_reason(error), fix)) from error


def collect_content(request: ReportRequest, output: Path) -> ReportContent:
    """All content of the report except the pictures; the raised ``InputError`` lists the problems of all parts."""
    names_and_folders = prediction_names(request.predictions, request.other)
    folders = list(names_and_folders.values())
    steps: list[Callable[[], Any]] = [
        partial(evaluate_folders, request.reference, folders, request.dataset_json, request.options),
        partial(check_output_file, output),
        partial(read_model, request.model) if request.model else lambda: None,
    ]
    all_scores, _, model = run_all(steps)
    scores = dict(zip(names_and_folders, all_scores, strict=True))
    case_files = find_case_files(
        request.reference, names_and_folders, request.images, request.dataset_json, request.options
    )
    raise_if_any(case_files.missing_image_problems(next(iter(scores.values())).cases))
    records = conversion_record_files(request.reference, request.dataset_json)
    record = read_conversion_record(records[0]) if records else None
    published = compare_with_published(record, scores) if record else None
    return ReportContent(dataset_title(case_files, request.dataset_json), scores, case_files, model, published)


def check_output_file(output: Path) -> None:
    """Raise ``InputError`` if ``output`` is a folder, or a file that is no page, before the time is spent."""
    fix = "give a file: -o report.html"
    if output.is_dir():
        raise InputError(Problem("report not written", output, "is a folder", fix))
    start = output.read_bytes()[:PAGE_START] if output.is_file() else b""
    if start and PAGE not in start.lower():
        raise InputError(Problem("report not written", output, "a file that is no report would be replaced", fix))


def prediction_names(predictions: Path, other: Path | None) -> dict[str, Path]:
    """Map a short name to each folder: the shortest last part of its path that differs from the other folder's."""
    if other is None:
        return {predictions.resolve().name: predictions}
    parts = [folder.resolve().parts for folder in (predictions, other)]
    length = next((n for n in range(1, 1 + min(map(len, parts))) if parts[0][-n:] != parts[1][-n:]), 0)
    if not length:
        problem = Problem("nothing to compare", other, "-p and --compare are the same folder", "give two folders")
        raise InputError(problem)
    return {"/".join(part[-length:]): folder for part, folder in zip(parts, (predictions, other), strict=True)}


def dataset_title(case_files: CaseFiles, dataset_json: Path | None) -> str:
    """Name of the data set: that of its folder if it is an nnU-Net data set, else the one in ``dataset.json``."""
    folders = [
        *dataset_folder_candidates(case_files.reference),
        *([dataset_json.resolve().parent] if dataset_json else []),
    ]
    named = [folder.name for folder in reversed(folders) if folder.name.startswith("Dataset")]
    return named[0] if named else str(case_files.scheme.content.get("name", folders[-1].name))


def case_entries(content: ReportContent, request: ReportRequest) -> Iterator[CaseEntry]:
    """Yield all cases, worst first; the first ``request.pictures`` have pictures.

    Raises:
        InputError: lists every image that is damaged or on another grid.
    """
    ranked = sort_by_dice(content.main)
    drawn = tqdm(ranked[: request.pictures], desc="draw", unit="case")
    draw = ((case, rank <= request.surfaces) for rank, case in enumerate(drawn, 1))
    pictures = run_all(partial(draw_case, content, case, with_surface) for case, with_surface in draw)
    print_warnings(content.case_files.warned)
    for rank, case in enumerate(ranked, 1):
        yield case_entry(content.main, case, rank, pictures[rank - 1] if rank <= len(pictures) else {})


def sort_by_dice(scores: Scores) -> list[str]:
    """Cases in ascending order of Dice (mean over classes); cases with undefined Dice (both masks empty) come last."""
    dice = dict(zip(scores.cases, scores.per_case(scores.groups[-1], "dice"), strict=True))
    return sorted(scores.cases, key=lambda case: (math.isnan(dice[case]), dice[case], case))


def draw_case(content: ReportContent, case: str, with_surface: bool) -> dict[str, Any]:
    """Pictures and viewer commands of a :class:`CaseEntry`; the error if this case cannot be drawn.

    Raises:
        InputError: the image is damaged or on another grid.
    """
    try:
        return _draw_pictures(content, case, with_surface)
    except InputError:
        raise
    except Exception as error:  # a fault in one picture must not cost the report of all other cases
        return {"drawing_error": f"{type(error).__name__}: {error}"}


def _draw_pictures(content: ReportContent, case: str, with_surface: bool) -> dict[str, Any]:
    case_files = content.case_files
    picture = read_case(case, case_files, case_reader(case_files))
    unit = "mm" if "hd95_mm" in content.main.measures else "nominal mm"
    surfaces = draw_case_surfaces(picture, case_files.scheme, unit) if with_surface else {}
    return {"slices": draw_slices(picture), "surfaces": surfaces, "commands": viewer_commands(case, case_files)}


def case_entry(scores: Scores, case: str, rank: int, pictures: Mapping[str, Any]) -> CaseEntry:
    """List entry of a case: Dice of its classes, mean distances, and notes on empty masks."""
    index, group = scores.cases.index(case), scores.groups[-1]
    dice = float(scores.per_case(group, "dice")[index])
    classes = scores.classes[:MAX_LISTED_CLASSES] if len(scores.classes) > 1 else ()
    cells = {f"Dice {name}": format_measure(float(scores.per_case(name, "dice")[index]), "dice") for name in classes}
    distances = [name for name in scores.measures if name.endswith(main_distance_measure(scores).removeprefix("hd95"))]
    cells |= {
        MEASURE_HEADINGS[name]: format_measure(float(scores.per_case(group, name)[index]), name) for name in distances
    }
    empty_mask_notes = [(name, scores.empty_mask(index, which)) for which, name in enumerate(scores.classes)]
    texts = {"both": "prediction and reference empty", "prediction": "prediction empty", "reference": "reference empty"}
    return CaseEntry(
        rank,
        case,
        dice,
        cells,
        tuple(f"{name}: {texts[empty]}" for name, empty in empty_mask_notes if empty),
        **pictures,
    )
