"""Building of the report: scores, pictures and the training of a model in one self-contained HTML file.

Limit: collects the results of ``evaluation``, ``case_pictures``, ``model_record`` and ``published``; ``page`` renders
them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any, run_all
from nnunetv2_crossmatch.evaluation.evaluate import (
    CONVERSION_RECORD,
    dataset_folder_candidates,
    evaluate_folder,
    find_dataset_json,
)
from nnunetv2_crossmatch.evaluation.published import compare_with_published
from nnunetv2_crossmatch.evaluation.score_files import MEASURE_HEADINGS, format_measure
from nnunetv2_crossmatch.evaluation.scores import Scores
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, read_label_scheme
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.report.case_pictures import (
    CaseFiles,
    case_reader,
    draw_case_surfaces,
    draw_slices,
    read_case,
    viewer_commands,
)
from nnunetv2_crossmatch.report.charts import main_distance_measure
from nnunetv2_crossmatch.report.model_record import read_model
from nnunetv2_crossmatch.report.page import CaseEntry, ReportContent, render_page

MAX_LISTED_CLASSES = 4


@dataclass(frozen=True)
class ReportRequest:
    """Input and options of a report.

    Attributes:
        reference, predictions, other: folders of segmentations; ``other`` is compared with ``predictions``.
        images: folder of the input images; None draws contours on a black background.
        model: model folder of nnU-Net for settings and curves, or None.
        dataset_json, spacing_mm, literature, allow_missing, processes: as for :func:`evaluate.evaluate_folder`.
        pictures: number of cases with pictures of slices, worst first.
        surfaces: number of cases with pictures of surfaces, worst first.
        command: command line that created the report, printed in its last section.
    """

    reference: Path
    predictions: Path
    processes: int
    other: Path | None = None
    images: Path | None = None
    model: Path | None = None
    dataset_json: Path | None = None
    spacing_mm: Sequence[float] | None = None
    literature: bool = False
    allow_missing: bool = False
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
        with atomic_write(output) as path:
            path.write_text(page, encoding="utf-8")
    except OSError as error:
        fix = "choose another file with -o"
        raise InputError(Problem("report not written", output, error.strerror or str(error), fix)) from error


def collect_content(request: ReportRequest, output: Path) -> ReportContent:
    """All content of the report except the pictures; the raised ``InputError`` lists the problems of all parts."""
    dataset_json = request.dataset_json or find_dataset_json(request.reference, request.predictions)
    scheme = read_label_scheme(dataset_json)
    names_and_folders = prediction_names(request.predictions, request.other)
    case_files = CaseFiles(request.reference, names_and_folders, request.images, scheme, request.spacing_mm)
    score = partial(
        evaluate_folder,
        request.reference,
        dataset_json=dataset_json,
        spacing_mm=request.spacing_mm,
        literature=request.literature,
        allow_missing=request.allow_missing,
        processes=request.processes,
    )
    steps: list[Callable[[], Any]] = [partial(score, folder) for folder in names_and_folders.values()]
    steps += [partial(check_output_file, output), partial(read_model, request.model) if request.model else lambda: None]
    *results, _, model = run_all(steps)
    scores = dict(zip(names_and_folders, results, strict=True))
    raise_if_any(case_files.missing_image_problems(next(iter(scores.values())).cases))
    record = read_conversion_record([*dataset_folder_candidates(request.reference), dataset_json.parent])
    published = compare_with_published(record, scores) if record else None
    return ReportContent(dataset_title(scheme, dataset_json), scores, case_files, model, published)


def check_output_file(output: Path) -> None:
    """Raise ``InputError`` if ``output`` is a folder, before the time for its content is spent."""
    if output.is_dir():
        raise InputError(Problem("report not written", output, "is a folder", "give a file: -o report.html"))


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


def read_conversion_record(folders: Sequence[Path]) -> dict[str, Any] | None:
    """Content of the conversion record of a converted data set, or None; ``evaluate_folder`` has checked the file."""
    for folder in folders:
        if (folder / CONVERSION_RECORD).is_file():
            return json.loads((folder / CONVERSION_RECORD).read_text(encoding="utf-8"))
    return None


def dataset_title(scheme: LabelScheme, dataset_json: Path) -> str:
    """Name of the data set: that of its folder if it is an nnU-Net data set, else the one in ``dataset.json``."""
    folder = dataset_json.resolve().parent.name
    return folder if folder.startswith("Dataset") else str(scheme.content.get("name", folder))


def case_entries(content: ReportContent, request: ReportRequest) -> Iterator[CaseEntry]:
    """Yield all cases, worst first; the first ``request.pictures`` have pictures.

    Raises:
        InputError: lists every image that is damaged or on another grid.
    """
    ranked = sort_by_dice(content.main)
    drawn = tqdm(ranked[: request.pictures], desc="draw", unit="case")
    draw = ((case, rank <= request.surfaces) for rank, case in enumerate(drawn, 1))
    pictures = run_all(partial(draw_case, content, case, with_surface) for case, with_surface in draw)
    for rank, case in enumerate(ranked, 1):
        yield case_entry(content.main, case, rank, pictures[rank - 1] if rank <= len(pictures) else {})


def sort_by_dice(scores: Scores) -> list[str]:
    """Cases in ascending order of Dice (mean over classes); cases with undefined Dice (both masks empty) come last."""
    dice = dict(zip(scores.cases, scores.per_case(scores.groups[-1], "dice"), strict=True))
    return sorted(scores.cases, key=lambda case: (math.isnan(dice[case]), dice[case], case))


def draw_case(content: ReportContent, case: str, with_surface: bool) -> dict[str, Any]:
    """Pictures and viewer commands of a :class:`CaseEntry`."""
    case_files = content.case_files
    picture = read_case(case, case_files, case_reader(case_files, case))
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
