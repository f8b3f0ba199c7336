"""The report: scores, pictures and the training of a model in one HTML file that needs nothing else.

Limit: gathers what ``evaluation``, ``case_pictures``, ``model_record`` and ``published`` give; ``report_page`` lays it
out.
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
from nnunetv2_crossmatch.evaluation.evaluate import CONVERSION_RECORD, beside, evaluate_folder, find_dataset_json
from nnunetv2_crossmatch.evaluation.published import compare_with_published
from nnunetv2_crossmatch.evaluation.score_files import HEADINGS, number
from nnunetv2_crossmatch.evaluation.scores import Scores
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, read_label_scheme
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.report.case_pictures import (
    Sources,
    read_case,
    reader_of,
    surface_pictures,
    tiles,
    viewer_commands,
)
from nnunetv2_crossmatch.report.charts import main_distance
from nnunetv2_crossmatch.report.model_record import read_model
from nnunetv2_crossmatch.report.page import CaseEntry, Findings, render

CLASSES_IN_LIST = 4


@dataclass(frozen=True)
class Request:
    """What to report on.

    Attributes:
        reference, predictions, other: folders of segmentations; ``other`` is compared with ``predictions``.
        images: folder of the images that were predicted from, or None: contours are drawn without them.
        model: model folder of the host for settings and curves, or None.
        dataset_json, spacing_mm, literature, allow_missing, processes: as for :func:`evaluation.evaluate_folder`.
        pictures: number of cases, from the worst on, that are drawn; surfaces: of those, how many also in 3d.
        command: the line that made the report, shown at its end.
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


def write_report(request: Request, output: Path) -> None:
    """Score, draw and write one HTML file; whole or not at all.

    Raises:
        InputError: everything that is wrong with segmentations, images, model or output, listed at once.
    """
    findings = gather(request, output)
    page = render(findings, list(case_entries(findings, request)), request.command)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as path:
            path.write_text(page, encoding="utf-8")
    except OSError as error:
        fix = "choose another file with -o"
        raise InputError(Problem("report not written", output, error.strerror or str(error), fix)) from error


def gather(request: Request, output: Path) -> Findings:
    """Everything but the pictures; raises with the problems of all parts."""
    dataset_json = request.dataset_json or find_dataset_json(request.reference, request.predictions)
    scheme = read_label_scheme(dataset_json)
    named = named_predictions(request.predictions, request.other)
    sources = Sources(request.reference, named, request.images, scheme, request.spacing_mm)
    score = partial(
        evaluate_folder,
        request.reference,
        dataset_json=dataset_json,
        spacing_mm=request.spacing_mm,
        literature=request.literature,
        allow_missing=request.allow_missing,
        processes=request.processes,
    )
    steps: list[Callable[[], Any]] = [partial(score, folder) for folder in named.values()]
    steps += [partial(check_output, output), partial(read_model, request.model) if request.model else lambda: None]
    *results, _, model = run_all(steps)
    scores = dict(zip(named, results, strict=True))
    raise_if_any(sources.missing_images(next(iter(scores.values())).cases))
    record = conversion_record([*beside(request.reference), dataset_json.parent])
    published = compare_with_published(record, scores) if record else None
    return Findings(title_of(scheme, dataset_json), scores, sources, model, published)


def check_output(output: Path) -> None:
    """Refuse a place that cannot become a file before an hour is spent on its content."""
    if output.is_dir():
        raise InputError(Problem("report not written", output, "is a folder", "give a file: -o report.html"))


def named_predictions(predictions: Path, other: Path | None) -> dict[str, Path]:
    """Short names for both folders: the last parts of their paths from where these differ."""
    if other is None:
        return {predictions.resolve().name: predictions}
    parts = [folder.resolve().parts for folder in (predictions, other)]
    length = next((n for n in range(1, 1 + min(map(len, parts))) if parts[0][-n:] != parts[1][-n:]), 0)
    if not length:
        problem = Problem("nothing to compare", other, "-p and --compare are the same folder", "give two folders")
        raise InputError(problem)
    return {"/".join(part[-length:]): folder for part, folder in zip(parts, (predictions, other), strict=True)}


def conversion_record(folders: Sequence[Path]) -> dict[str, Any] | None:
    """The record that our converters leave with a data set; it was read once for the scores, so it can be read."""
    for folder in folders:
        if (folder / CONVERSION_RECORD).is_file():
            return json.loads((folder / CONVERSION_RECORD).read_text(encoding="utf-8"))
    return None


def title_of(scheme: LabelScheme, dataset_json: Path) -> str:
    """Name of the data set: its folder's if that is one of nnU-Net, else what ``dataset.json`` says."""
    folder = dataset_json.resolve().parent.name
    return folder if folder.startswith("Dataset") else str(scheme.content.get("name", folder))


def case_entries(findings: Findings, request: Request) -> Iterator[CaseEntry]:
    """All cases, worst first, the first ones with pictures.

    Raises:
        InputError: every image that is damaged or on another grid.
    """
    ranked = worst_first(findings.main)
    drawn = tqdm(ranked[: request.pictures], desc="draw", unit="case")
    draw = ((case, rank <= request.surfaces) for rank, case in enumerate(drawn, 1))
    pictures = run_all(partial(case_pictures, findings, case, with_surface) for case, with_surface in draw)
    for rank, case in enumerate(ranked, 1):
        yield case_entry(findings.main, case, rank, pictures[rank - 1] if rank <= len(pictures) else {})


def worst_first(scores: Scores) -> list[str]:
    """Cases by their Dice (mean over classes); those without any (both masks empty) come last."""
    dice = dict(zip(scores.cases, scores.of(scores.groups[-1], "dice"), strict=True))
    return sorted(scores.cases, key=lambda case: (math.isnan(dice[case]), dice[case], case))


def case_pictures(findings: Findings, case: str, with_surface: bool) -> dict[str, Any]:
    """The drawn part of a :class:`CaseEntry`."""
    sources = findings.sources
    picture = read_case(case, sources, reader_of(sources, case))
    unit = "mm" if "hd95_mm" in findings.main.measures else "nominal mm"
    surfaces = surface_pictures(picture, sources.scheme, unit) if with_surface else {}
    return {"tiles": tiles(picture), "surfaces": surfaces, "commands": viewer_commands(case, sources)}


def case_entry(scores: Scores, case: str, rank: int, pictures: Mapping[str, Any]) -> CaseEntry:
    """Numbers of a case: Dice of its classes, mean distance measures, and what is empty."""
    index, group = scores.cases.index(case), scores.groups[-1]
    dice = float(scores.of(group, "dice")[index])
    classes = scores.classes[:CLASSES_IN_LIST] if len(scores.classes) > 1 else ()
    cells = {f"Dice {name}": number(float(scores.of(name, "dice")[index]), "dice") for name in classes}
    distances = [name for name in scores.measures if name.endswith(main_distance(scores).removeprefix("hd95"))]
    cells |= {HEADINGS[name]: number(float(scores.of(group, name)[index]), name) for name in distances}
    marks = [(name, scores.empty(index, which)) for which, name in enumerate(scores.classes)]
    texts = {"both": "prediction and reference empty", "prediction": "prediction empty", "reference": "reference empty"}
    return CaseEntry(
        rank, case, dice, cells, tuple(f"{name}: {texts[empty]}" for name, empty in marks if empty), **pictures
    )
