"""The commands of a protocol in their order, each with the file that proves it done, and a runner that skips those.

Limit: knows file names and flags; what is trained is decided in ``rows``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.protocol.prepare import PLANS
from benchmarks.protocol.request import PLANNED, PLANNERS, SMALL_PATCH, SMALL_SPACING_MM, SOURCES, Request, processes
from benchmarks.protocol.rows import Pace, Run
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.folders import written_whole
from nnunetv2_crossmatch.methods.settings import settings_from_name
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint

FOLDERS = {"val": "Val", "test": "Ts"}
PICTURES = ("--pictures", "6", "--surfaces", "1")


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
    stages.total += len(steps)
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
class Protocol:
    """The steps of ``request`` in ``folder``."""

    request: Request
    folder: Path

    def data_steps(self) -> list[Step]:
        """Convert, plan the labeled cases, give the plans to all data sets, preprocess."""
        request, sets = self.request, self._sets()
        names = [request.dataset_name(every) for every in sets]
        ids = [str(request.dataset_id(every)) for every in sets]
        chosen = ("-c", request.configuration)
        planner = PLANNERS[request.network]
        plan = ("-d", ids[0], *chosen, "--no_pp", "-npfp", processes(), *(("-pl", planner) if planner else ()))
        plans = ("--planned", PLANNED[request.network], *chosen, "--targets", *names, *self._small())
        last_plans = self.folder / "nnUNet_preprocessed" / names[-1] / f"{PLANS}.json"
        steps = [
            *(self._convert(every) for every in sets),
            Step("plan", ("nnUNetv2_plan_and_preprocess", *plan)),
            Step("plans", ("python", "-m", "benchmarks.protocol.prepare", "plans", *plans), last_plans),
            Step("preprocess", ("nnUNetv2_preprocess", "-d", *ids, "-plans_name", PLANS, *chosen, "-np", processes())),
            Step("unlabeled", ("nnUNetv2_crossmatch_preprocess", "-d", ids[0], *chosen, "-p", PLANS)),
        ]
        return [*steps, self._labels(names)] if request.diagnose else steps

    def _small(self) -> tuple[str, ...]:
        if not self.request.small:
            return ()
        patch = ("--small-patch", *map(str, self.request.patch or SMALL_PATCH))
        mm = SMALL_SPACING_MM.get(self.request.dataset)
        return (*patch, "--small-features", str(self.request.small), *(("--small-mm", str(mm)) if mm else ()))

    def _sets(self) -> list[bool]:
        return [False, True] if self.request.needs_all_labeled else [False]

    def _convert(self, every: bool) -> Step:
        request = self.request
        options = ["--splits", str(self.splits_file(every))]
        if request.spacing:
            options += ["--spacing", *map(str, request.spacing)]
        if request.allow_missing:
            options.append("--allow-missing")
        source = ("-i", request.data, "-d", str(request.dataset_id(every)))
        record = self.conversion_record(every)
        if request.dataset in SOURCES:
            converter: tuple[str, ...] = (SOURCES[request.dataset].command, "-np", processes())
        else:
            converter = ("python", "-m", "benchmarks.protocol.folder_data", "--name", request.name)
            options += [*named("--classes", request.classes), *named("--channels", request.channels)]
        return Step(record.parent.name, (*converter, *source, *options), record)

    def _labels(self, names: Sequence[str]) -> Step:
        sets = ("--labeled", names[1], "--unlabeled", names[0])
        folder = self.folder / "nnUNet_raw" / names[0] / "labelsUn"
        return Step("labels", ("python", "-m", "benchmarks.protocol.prepare", "labels", *sets), folder)

    def conversion_record(self, every: bool) -> Path:
        """What the converter wrote about a data set."""
        return self.folder / "nnUNet_raw" / self.request.dataset_name(every) / "conversion.json"

    def splits_file(self, every: bool) -> Path:
        """The split lists of a data set."""
        return self.folder / ("splits_all_labeled.json" if every else "splits.json")

    def train(self, trainer: str, labeled_all: bool = False) -> Step:
        """Train on all labeled cases; continue where a killed training was."""
        which = (str(self.request.dataset_id(labeled_all)), self.request.configuration, "all")
        model = ("-tr", trainer, "-p", PLANS, "-device", self.request.device)
        output = self.fold(trainer, labeled_all) / "checkpoint_final.pth"
        epochs = settings_from_name(trainer).epochs
        return Step(f"train_{which[0]}_{trainer}", ("nnUNetv2_train", *which, *model, "--c"), output, epochs)

    def fold(self, trainer: str, labeled_all: bool = False) -> Path:
        """The folder of a training's checkpoints."""
        model = f"{trainer}__{PLANS}__{self.request.configuration}"
        return self.folder / "nnUNet_results" / self.request.dataset_name(labeled_all) / model / "fold_all"

    def run_steps(self, run: Run, control: Run | None) -> list[Step]:
        """Train, predict with the final weights, evaluate both ways, report; ``control`` is compared with."""
        training = self.train(run.trainer, run.labeled_all)
        return [training, self._predict(run), *self._evaluate(run), self._report(run, control)]

    def _predict(self, run: Run) -> Step:
        where = ("-i", str(self._raw("images")), "-o", str(self._predictions(run)))
        model = ("-d", str(self.request.dataset_id(run.labeled_all)), "-c", self.request.configuration, "-f", "all")
        trainer = ("-tr", run.trainer, "-p", PLANS, "-chk", "checkpoint_final.pth", "-device", self.request.device)
        workers = ("-npp", "0", "-nps", "0") if self.request.device == "cpu" else ()
        return Step(f"predict_{run.name}", ("nnUNetv2_predict", *where, *model, *trainer, *workers))

    def _evaluate(self, run: Run) -> list[Step]:
        what = ("-r", str(self._raw("labels")), "-p", str(self._predictions(run)))
        results = self.results(run)
        strict = ("nnUNetv2_crossmatch_evaluate", *what, "-o", str(results))
        published = ("nnUNetv2_crossmatch_evaluate", *what, "--literature", "-o", str(results / "literature"))
        return [
            Step(f"evaluate_{run.name}", strict, results / "scores.md"),
            Step(f"literature_{run.name}", published, results / "literature" / "scores.md"),
        ]

    def _report(self, run: Run, control: Run | None) -> Step:
        page = self.results(run) / "report.html"
        what = ("-r", str(self._raw("labels")), "-p", str(self._predictions(run)), "-i", str(self._raw("images")))
        model = ("-m", str(self.fold(run.trainer, run.labeled_all).parent))
        beside = ("--compare", str(self._predictions(control))) if control and control != run else ()
        command = ("nnUNetv2_crossmatch_report", *what, *model, *beside, *PICTURES, "-o", str(page))
        return Step(f"report_{run.name}", command, page)

    def final_step(self) -> Step:
        """The table over all runs; made anew each time, since it costs seconds."""
        return Step("results", ("python", "-m", "benchmarks.protocol.results", "--folder", str(self.folder)))

    def results(self, run: Run) -> Path:
        """Folder of a run's scores, curves and report."""
        return self.folder / "results" / run.name

    def _predictions(self, run: Run) -> Path:
        return self.folder / "predictions" / run.name

    def _raw(self, part: str) -> Path:
        return self.folder / "nnUNet_raw" / self.request.dataset_name() / f"{part}{FOLDERS[self.request.scored_on]}"

    def pace(self, trainers: Mapping[str, str]) -> Pace:
        """Seconds per step of the measuring trainings, by the fields of :class:`Pace`."""
        return Pace(**{name: step_seconds(self.fold(trainer), trainer) for name, trainer in trainers.items()})


def named(flag: str, values: Sequence[str]) -> list[str]:
    """``flag`` with its values; nothing where there are none."""
    return [flag, *values] if values else []


def step_seconds(fold: Path, trainer: str) -> float:
    """Seconds per step of a training's last epoch: loading, steps, online validation; neither plots nor saving."""
    log = load_checkpoint(fold / "checkpoint_final.pth")["logging"]
    seconds = log["epoch_end_timestamps"][-1] - log["epoch_start_timestamps"][-1]
    return float(seconds) / settings_from_name(trainer).iterations


def runs_with_controls(protocol: Protocol, runs: Sequence[Run]) -> list[Step]:
    """Steps of all runs; each is compared with the supervised one of equal steps and seed, if there is one."""
    by_name = {run.name: run for run in runs}
    return [step for run in runs for step in protocol.run_steps(run, by_name.get(run.control))]


def write_script(file: Path, exported: Mapping[str, str], steps: Iterable[Step]) -> None:
    """A shell script of all commands in their order, for a folder that holds the lists and nothing else yet."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    roots = 'mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"'
    lines = ["#!/bin/sh", "set -e", *exports, roots, *(shlex.join(step.command) for step in steps)]
    with written_whole(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_runs(file: Path) -> list[Run]:
    """The runs that ``python -m benchmarks.protocol`` planned."""
    return [Run(**entry) for entry in json.loads(file.read_text())]
