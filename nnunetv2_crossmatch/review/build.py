"""A review: every unlabeled case predicted and measured, expected Dice, which cases to label next; a page, CSV, JSON.

Limit: calls the parts in their order; one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.evaluation.segmentations import read_label_scheme
from nnunetv2_crossmatch.json_files import MissingFileError, read_json
from nnunetv2_crossmatch.prediction.predictor import CasePredictor
from nnunetv2_crossmatch.prediction.pseudo_labeled import unlabeled_images
from nnunetv2_crossmatch.review.case_results import CaseResult, Measuring, StoppedError, measure_case
from nnunetv2_crossmatch.review.conclusions import Conclusions, conclude
from nnunetv2_crossmatch.review.files import check_output, write_files
from nnunetv2_crossmatch.review.labeled_cases import (
    HeldOutCase,
    held_out_in_folders,
    held_out_of_folds,
    read_labeled_cases,
)
from nnunetv2_crossmatch.review.page import Origin, render_page
from nnunetv2_crossmatch.review.pictures import CasePictures, draw_case
from nnunetv2_crossmatch.review.streams import FOLDS, Streams

FACTS = "review.json"
FACTS_FORM = {"model": str, "checkpoints": {...: int}, "draws": int, "seed": int, "mirroring": bool}


@dataclass(frozen=True)
class ReviewRequest:
    """Input and options of a review.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        output: the page; CSV, JSON and the folder of the cases stand beside it.
        images: folder of the unlabeled images; None: ``imagesUn`` of the data set.
        held_out: folders of images and labels of labeled cases that the model did not learn from; None: the validation
            cases of its folds.
        count: how many cases to choose for labeling.
        draws: of each perturbation.
        seed: of the first draw.
        pictures: number of cases with pictures, worst first; those chosen for labeling have some, too.
        command: command line, printed on the page.
    """

    dataset: str
    output: Path
    images: Path | None = None
    held_out: tuple[Path, Path] | None = None
    count: int = 10
    draws: int = 3
    seed: int = 0
    pictures: int = 20
    command: str = ""

    @property
    def work(self) -> Path:
        """Folder of what is kept of each case."""
        return self.output.with_name(f"{self.output.stem}_cases")


def write_review(model: CasePredictor, request: ReviewRequest) -> Conclusions:
    """Predict, measure, choose and write; what a stopped run has measured is kept.

    Returns:
        What is on the page; its ``failed`` lists the problems of the cases that could not be used.

    Raises:
        InputError: there are no unlabeled cases, the model is of another data set, no case can be used, the results
            beside the page are of another model, or another process writes there.
    """
    source = folders.raw_folder() / request.dataset
    model.check_dataset(source / "dataset.json")
    scheme = read_label_scheme(source / "dataset.json")
    check_output(request.output)
    images = unlabeled_images(source, scheme.file_ending, request.images)
    held_out = find_held_out(model, request, source, scheme.file_ending)
    labeled = read_labeled_cases(source / "labelsTr", scheme, model.reader)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    with folders.exclusive(request.work):
        check_same_run(request.work, run_facts(model, request))
        failed: list[Problem] = []
        streams = Streams(model, 0, True, request.draws, request.seed)
        measuring = Measuring(model, streams, scheme, request.work)
        results = measure_all(measuring, images, failed)
        known = measure_held_out(measuring, request, held_out, failed)
        if not results:
            raise InputError(*failed)
        kinds = [kind for kind in streams.kinds if request.held_out or kind != FOLDS]
        found = conclude(results, labeled, known, kinds, request.count, failed)
        pictures = draw_cases(measuring, found, images, request.pictures)
        origin = Origin(request.dataset, model.facts["model"], request.work, request.command)
        write_files(found, render_page(found, pictures, origin), origin, request.output)
    return found


def run_facts(model: CasePredictor, request: ReviewRequest) -> dict[str, Any]:
    """What the results of a case depend on, beside its images."""
    options = {"draws": request.draws, "seed": request.seed, "mirroring": bool(model.predictor.use_mirroring)}
    return {**model.facts, **options}


def check_same_run(work: Path, facts: Mapping[str, Any]) -> None:
    """Note what measures the cases, or compare it with the note of an earlier run.

    Raises:
        InputError: the results in ``work`` are of another model or other options, or it holds something else.
    """
    fix = f"remove {work}, or write another page with -o"
    try:
        before = read_json(work / FACTS, FACTS_FORM, fix, "unusable note")
    except MissingFileError:
        if work.is_dir() and any(work.iterdir()):
            detail = "it holds something else than the cases of a review"
            raise InputError(Problem("folder not empty", work, detail, "write another page with -o")) from None
        work.mkdir(exist_ok=True)
        folders.write_json(work / FACTS, facts)
        return
    if before != facts:
        detail = "they are of another model, or of other draws, seed or mirroring"
        raise InputError(Problem("results of another review", work, detail, fix))


def find_held_out(model: CasePredictor, request: ReviewRequest, source: Path, ending: str) -> dict[str, HeldOutCase]:
    """The cases that the request names, or else the validation cases of the folds."""
    if request.held_out is None:
        return held_out_of_folds(model.files, source, ending)
    return held_out_in_folders(*request.held_out, ending)


def measure_all(
    measuring: Measuring, cases: Mapping[str, Sequence[Path]], failed: list[Problem], description: str = "unlabeled"
) -> list[CaseResult]:
    """Results of all cases that can be used; problems of the others are appended to ``failed``.

    Raises:
        StoppedError: what is wrong would be wrong with every case.
    """
    results = []
    for case, images in tqdm(cases.items(), desc=description, unit="case"):
        with noted_problems(case, images[0], failed):
            results.append(measure_case(measuring, case, images))
    return results


@contextmanager
def noted_problems(case: str, image: Path, failed: list[Problem]) -> Iterator[None]:
    """Append to ``failed`` what goes wrong with one case, except for what would go wrong with every one."""
    try:
        yield
    except (StoppedError, OSError):
        raise
    except InputError as error:
        failed += error.problems
    except Exception as error:  # a fault in one case must not cost the review of all others
        reason = " ".join(str(error).split())
        fix = f"predict {case} alone with nnUNetv2_predict to see more"
        failed.append(Problem("case not predicted", image, f"{type(error).__name__}: {reason}", fix))


def measure_held_out(
    measuring: Measuring, request: ReviewRequest, cases: Mapping[str, HeldOutCase], failed: list[Problem]
) -> list[CaseResult]:
    """Results of the held-out cases with their Dice, each by a fold that did not learn from it."""
    model, results = measuring.model, []
    streams = {None: measuring.streams}
    for case, one in tqdm(cases.items(), desc="held out", unit="case", disable=not cases):
        if one.fold not in streams:
            streams = {one.fold: Streams(model, one.fold or 0, False, request.draws, request.seed)}  # one at a time
        own = Measuring(model, streams[one.fold], measuring.scheme, measuring.folder / "held_out")
        alone = nullcontext() if one.fold is None else model.of_fold(one.fold)
        with noted_problems(case, one.images[0], failed), alone:
            results.append(measure_case(own, case, one.images, one.label))
    return [one for one in results if one.dice == one.dice]


def draw_cases(
    measuring: Measuring, found: Conclusions, images: Mapping[str, Sequence[Path]], count: int
) -> dict[str, CasePictures]:
    """Pictures of the worst cases and of those chosen for labeling, by case."""
    names = [one.result.case for one in found.cases]
    drawn = dict.fromkeys([*names[:count], *(one.result.case for one in found.chosen)] if count else [])
    bar = tqdm(drawn, desc="draw", unit="case")
    return {case: draw_case(measuring, case, images[case][0]) for case in bar}
