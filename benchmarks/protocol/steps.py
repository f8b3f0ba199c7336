"""The commands of a protocol in their order, each with the file that proves it done, and a runner that skips those.

Limit: knows file names and flags; what is trained is decided in ``rows``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.protocol.prepare import PLANS
from benchmarks.protocol.request import (
    ALL_LABELED,
    PLANNED,
    PLANNERS,
    PREDICTED,
    SMALL_PATCH,
    SMALL_SPACING_MM,
    SOURCES,
    Request,
    form_of,
    processes,
)
from benchmarks.protocol.rows import CONTINUED, Run
from benchmarks.protocol.score import UNMIRRORED
from benchmarks.protocol.trainers import epochs_of
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.errors import command_line
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.json_files import read_json

FOLDERS = {"val": "Val", "test": "Ts"}
PICTURES = ("--pictures", "6", "--surfaces", "1")
PREPARE = ("python", "-m", "benchmarks.protocol.prepare")


@dataclass(frozen=True)
class Step:
    """One command; done when ``output`` exists, which appears whole or not at all.

    A command whose output may be half-written has none: the runner notes its end.
    """

    name: str
    command: tuple[str, ...]
    output: Path | None = None
    epochs: int | None = None

    def proof(self, folder: Path) -> Path:
        """The file that says that the step is done."""
        return self.output or folder / "finished" / self.name


def run_steps(stages: Stages, steps: Sequence[Step]) -> None:
    """Run the steps that are not done yet; a step that fails or is stopped is begun, or continued, the next time."""
    for step in steps:
        proof = step.proof(stages.folder)
        if proof.exists():
            stages.done += 1
            print(f"[{stages.done:2d}/{stages.total}] done before: {step.name}", flush=True)
            continue
        stages.run(*step.command, epochs=step.epochs)
        if step.output is None:
            proof.parent.mkdir(exist_ok=True)
            proof.touch()


@dataclass(frozen=True)
class Training:
    """One training: trainer, what is added to the id of the data set, fold."""

    trainer: str
    added: int = 0
    fold: str = "all"


def trainings_of(run: Run) -> list[Training]:
    """The trainings of a row in their order; the last one is scored."""
    if run.teacher:
        return [Training(run.teacher), Training(run.trainer, PREDICTED + run.predicted, run.fold)]
    return [Training(run.trainer, ALL_LABELED if run.labeled_all else 0, run.fold)]


@dataclass(frozen=True)
class Protocol:
    """The steps of ``request`` in ``folder``."""

    request: Request
    folder: Path

    def data_steps(self) -> list[Step]:
        """Convert, plan the labeled cases, give the plans to all data sets, preprocess."""
        request, sets = self.request, self._sets()
        names = [request.dataset_name(added) for added in sets]
        ids = [str(request.dataset_id(added)) for added in sets]
        chosen = ("-c", request.configuration)
        planner = PLANNERS[request.network]
        plan = ("-d", ids[0], *chosen, "--no_pp", "-npfp", processes(), *(("-pl", planner) if planner else ()))
        plans = ("--planned", PLANNED[request.network], *chosen, "--targets", *names, *self._small())
        last_plans = self.folder / "nnUNet_preprocessed" / names[-1] / f"{PLANS}.json"
        steps = [
            *(self._convert(added) for added in sets),
            Step("plan", ("nnUNetv2_plan_and_preprocess", *plan)),
            Step("plans", (*PREPARE, "plans", *plans), last_plans),
            *(self._preprocess(added) for added in sets),
            Step("unlabeled", ("nnUNetv2_crossmatch_preprocess", "-d", ids[0], *chosen, "-p", PLANS)),
        ]
        return [*steps, self._labels(names)] if request.diagnose else steps

    def _preprocess(self, added: int) -> Step:
        which = ("-d", str(self.request.dataset_id(added)), "-plans_name", PLANS, "-c", self.request.configuration)
        command = ("nnUNetv2_preprocess", *which, "-np", processes())
        return Step(f"preprocess_{self.request.dataset_name(added)}", command)

    def _small(self) -> tuple[str, ...]:
        if not self.request.small:
            return ()
        patch = ("--small-patch", *map(str, self.request.patch or SMALL_PATCH))
        mm = SMALL_SPACING_MM.get(self.request.dataset)
        return (*patch, "--small-features", str(self.request.small), *(("--small-mm", str(mm)) if mm else ()))

    def _sets(self) -> list[int]:
        return [0, ALL_LABELED] if self.request.needs_all_labeled else [0]

    def _convert(self, added: int) -> Step:
        request = self.request
        options = ["--splits", str(self.splits_file(bool(added)))]
        if request.spacing:
            options += ["--spacing", *map(str, request.spacing)]
        if request.allow_missing:
            options.append("--allow-missing")
        source = ("-i", request.data, "-d", str(request.dataset_id(added)))
        record = self.conversion_record(added)
        if request.dataset in SOURCES:
            converter: tuple[str, ...] = (SOURCES[request.dataset].command, "-np", processes())
        else:
            converter = ("python", "-m", "benchmarks.protocol.folder_data", "--name", request.name)
            options += [*named("--classes", request.classes), *named("--channels", request.channels)]
        return Step(record.parent.name, (*converter, *source, *options), record)

    def _labels(self, names: Sequence[str]) -> Step:
        sets = ("--labeled", names[1], "--unlabeled", names[0])
        folder = self.folder / "nnUNet_raw" / names[0] / "labelsUn"
        return Step("labels", (*PREPARE, "labels", *sets), folder)

    def conversion_record(self, added: int = 0) -> Path:
        """What the converter wrote about a data set."""
        return self.folder / "nnUNet_raw" / self.request.dataset_name(added) / "conversion.json"

    def splits_file(self, every: bool) -> Path:
        """The split lists of a data set."""
        return self.folder / ("splits_all_labeled.json" if every else "splits.json")

    def train(self, training: Training) -> Step:
        """Train; continue where a killed training was."""
        which = (str(self.request.dataset_id(training.added)), self.request.configuration, training.fold)
        model = ("-tr", training.trainer, "-p", PLANS, "-device", self.request.device)
        output = self.fold(training) / "checkpoint_final.pth"
        command = self._threaded("nnUNetv2_train", *which, *model, "--c")
        return Step(f"train_{which[0]}_{training.trainer}", command, output, epochs_of(training.trainer))

    def _threaded(self, *command: str) -> tuple[str, ...]:
        """The command of nnU-Net with as many threads as are asked for: by itself it takes all cores."""
        threads = self.request.threads if self.request.device == "cpu" else None
        if threads is None:
            return command
        return ("python", "-m", "benchmarks.protocol.with_threads", str(threads), *command)

    def fold(self, training: Training) -> Path:
        """The folder of a training's checkpoints."""
        model = f"{training.trainer}__{PLANS}__{self.request.configuration}"
        dataset = self.request.dataset_name(training.added)
        return self.folder / "nnUNet_results" / dataset / model / f"fold_{training.fold}"

    def run_steps(self, run: Run, control: Run | None) -> list[Step]:
        """Train, predict with the final weights, score each way, report; ``control`` is compared with."""
        before = self._self_training(run) if run.teacher else []
        last = trainings_of(run)[-1]
        if run.row == CONTINUED:
            before.append(self._start_from(run, last))
        predictions = [self._predict(run, last, mirrored) for mirrored in (True, False)]
        return [*before, self.train(last), *predictions, self._score(run), self._report(run, control)]

    def _self_training(self, run: Run) -> list[Step]:
        """Train the teacher, predict the unlabeled cases, make a data set of both kinds of labels, preprocess it."""
        added = PREDICTED + run.predicted
        name = self.request.dataset_name(added)
        teacher = Training(run.teacher)
        predictions = self.folder / "predictions" / f"unlabeled_{run.predicted}"
        sets = ("--labeled", self.request.dataset_name(), "--target", name, "--predictions", str(predictions))
        splits = self.folder / "nnUNet_preprocessed" / name / "splits_final.json"
        return [
            self.train(teacher),
            Step(f"predict_unlabeled_{run.predicted}", self.predict(teacher, self._unlabeled(), predictions)),
            Step(f"predicted_labels_{run.predicted}", (*PREPARE, "predicted", *sets), splits),
            self._preprocess(added),
        ]

    def _start_from(self, run: Run, last: Training) -> Step:
        """Let the second training begin with the weights of the first one."""
        which = (str(self.request.dataset_id(last.added)), self.request.configuration, last.fold)
        model = self.fold(Training(run.teacher)) / "checkpoint_final.pth"
        command = ("nnUNetv2_crossmatch_start_from", *which, "-tr", last.trainer, "-p", PLANS, "-m", str(model))
        return Step(f"start_{run.name}", command)

    def measured_prediction(self, trainer: str) -> Step:
        """The prediction of all unlabeled cases, whose time counts for self-training."""
        folder = self.folder / "predictions" / "unlabeled_measured"
        return Step("predict_unlabeled_measured", self.predict(Training(trainer), self._unlabeled(), folder))

    def predict(self, training: Training, images: Path, target: Path, mirrored: bool = True) -> tuple[str, ...]:
        """The command that predicts ``images`` with final weights."""
        where = ("-i", str(images), "-o", str(target))
        model = ("-d", str(self.request.dataset_id(training.added)), "-c", self.request.configuration)
        fold = ("-f", training.fold, "-tr", training.trainer, "-p", PLANS, "-chk", "checkpoint_final.pth")
        device = ("-device", self.request.device)
        workers = ("-npp", "0", "-nps", "0") if self.request.device == "cpu" else ()
        plain = () if mirrored else ("--disable_tta",)
        return self._threaded("nnUNetv2_predict", *where, *model, *fold, *device, *workers, *plain)

    def _predict(self, run: Run, training: Training, mirrored: bool) -> Step:
        name = f"predict_{run.name}" + ("" if mirrored else f"_{UNMIRRORED}")
        return Step(name, self.predict(training, self._raw("images"), self._predictions(run, mirrored), mirrored))

    def _score(self, run: Run) -> Step:
        folders = [str(self._predictions(run, mirrored)) for mirrored in (True, False)]
        what = ("-r", str(self._raw("labels")), "-p", *folders, "-o", str(self.results(run)))
        proof = self.results(run) / UNMIRRORED / "scores.md"
        return Step(f"score_{run.name}", ("python", "-m", "benchmarks.protocol.score", *what), proof)

    def _report(self, run: Run, control: Run | None) -> Step:
        page = self.results(run) / "report.html"
        what = ("-r", str(self._raw("labels")), "-p", str(self._predictions(run)), "-i", str(self._raw("images")))
        model = ("-m", str(self.fold(trainings_of(run)[-1]).parent))
        beside = ("--compare", str(self._predictions(control))) if control and control != run else ()
        command = ("nnUNetv2_crossmatch_report", *what, *model, *beside, *PICTURES, "-o", str(page))
        return Step(f"report_{run.name}", command, page)

    def final_step(self) -> Step:
        """The table over all runs; made anew each time, since it costs seconds."""
        return Step("results", ("python", "-m", "benchmarks.protocol.results", "--folder", str(self.folder)))

    def results(self, run: Run) -> Path:
        """Folder of a run's scores, curves and report."""
        return self.folder / "results" / run.name

    def _predictions(self, run: Run, mirrored: bool = True) -> Path:
        return self.folder / "predictions" / (run.name if mirrored else f"{run.name}_{UNMIRRORED}")

    def _unlabeled(self) -> Path:
        return self.folder / "nnUNet_raw" / self.request.dataset_name() / "imagesUn"

    def _raw(self, part: str) -> Path:
        return self.folder / "nnUNet_raw" / self.request.dataset_name() / f"{part}{FOLDERS[self.request.scored_on]}"


def named(flag: str, values: Sequence[str]) -> list[str]:
    """``flag`` with its values; nothing where there are none."""
    return [flag, *values] if values else []


def runs_with_controls(protocol: Protocol, runs: Sequence[Run]) -> list[Step]:
    """Steps of all runs; each is compared with the supervised one of equal steps and seed, if there is one."""
    by_name = {run.name: run for run in runs}
    return [step for run in runs for step in protocol.run_steps(run, by_name.get(run.control))]


def write_script(file: Path, exported: Mapping[str, str], steps: Iterable[Step]) -> None:
    """A shell script of all commands in their order, for a folder that holds the lists and nothing else yet."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    roots = 'mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"'
    lines = ["#!/bin/sh", "set -e", *exports, roots, *(command_line(*step.command) for step in steps)]
    with atomic_write(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_runs(file: Path) -> list[Run]:
    """The runs that ``python -m benchmarks.protocol`` planned."""
    entries = read_json(file, [form_of(Run)], "call python -m benchmarks.protocol again, which plans them")
    return [Run(**entry) for entry in entries]
