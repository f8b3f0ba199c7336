"""Seconds of a training step and of a prediction, measured by short trainings of each kind, and kept in a file.

Limit: reads checkpoints and files; the commands that make them are in ``steps``.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.protocol.request import ROOT, Request
from benchmarks.protocol.rows import Times
from benchmarks.protocol.trainers import changed, draws_students, iterations_of
from nnunetv2_crossmatch.errors import Problem, raise_if_any
from nnunetv2_crossmatch.folders import write_json
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint

MEASURED_STEPS = 20
DRAWN_STEPS = 4  # times as many where the cost of a step depends on what it draws
MEASURED_EPOCHS = 4  # the first one starts workers, tunes kernels and tries the memory; the others count
LARGEST_SPREAD = 0.2
PREDICTION = "prediction"
TIMES_FORM = {
    "seconds_per_step": {...: float},
    "spread?": {...: float},
    PREDICTION: (float, None),
    "threads": (int, None),
}
MEASURE_ANEW = "measure anew: without --step-times, in a new folder"


def measuring(trainer: str, steps: int | None) -> str:
    """The short training that measures ``trainer``; of no more steps per epoch than the run itself has."""
    most = MEASURED_STEPS * (DRAWN_STEPS if draws_students(trainer) else 1)
    short = {"epochs": MEASURED_EPOCHS, "iterations": min(most, steps or most)}
    return changed(trainer, **short, validation_iterations=1, seed=0, diagnose=0)


def step_seconds(fold: Path, trainer: str) -> list[float]:
    """Seconds per step of each epoch but the first: loading, steps, online validation; neither plots nor saving."""
    log = load_checkpoint(fold / "checkpoint_final.pth")["logging"]
    pairs = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    return [float(end - start) / iterations_of(trainer) for start, end in pairs][1:]


def spread(seconds: Sequence[float]) -> float:
    """Largest minus smallest, as a part of the median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def refuse_busy(measured: Mapping[str, Sequence[float]], folds: Mapping[str, Path]) -> None:
    """Do nothing if each trainer's epochs took about as long.

    Raises:
        InputError: they did not; these measurements are removed, so that the next call makes them anew.
    """
    busy = {name: spread(each) for name, each in measured.items() if spread(each) > LARGEST_SPREAD}
    for name in busy:
        shutil.rmtree(folds[name])
    fix = "call it again when nothing else runs"
    raise_if_any(
        [
            Problem("step time measured on a busy machine", "", f"{name}: epochs differ by {part:.0%}", fix)
            for name, part in busy.items()
        ]
    )


def write_times(
    file: Path, request: Request, measured: Mapping[str, Sequence[float]], prediction: float | None
) -> None:
    """Add what was measured to ``file``, with the code's commit, the number of threads and the date."""
    before = read_json(file, TIMES_FORM, MEASURE_ANEW, "no step times") if file.exists() else {}
    content = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "threads": threads(request),
        "seconds_per_step": {name: statistics.median(each) for name, each in measured.items()},
        "spread": {name: spread(each) for name, each in measured.items()},
    }
    for name in ("seconds_per_step", "spread"):
        content[name] = before.get(name, {}) | content[name]
    write_json(file, {**before, **content, PREDICTION: prediction or before.get(PREDICTION)})


def read_times(file: Path, request: Request, trainers: Iterable[str], predicted: bool) -> Times:
    """The times in ``file``.

    Raises:
        InputError: not a file of step times, measured with another number of threads, or without one of ``trainers``.
    """
    fix = MEASURE_ANEW
    content = read_json(file, TIMES_FORM, fix, "no step times")
    steps, seconds, of_threads = content["seconds_per_step"], content[PREDICTION], content["threads"]
    lacking = [name for name in trainers if name not in steps] + ([PREDICTION] if predicted and not seconds else [])
    problems = [Problem("step times missing", file, ", ".join(lacking), fix)] if lacking else []
    if of_threads != threads(request):
        detail = f"{of_threads} in the file, {threads(request)} now"
        problems.append(Problem("step times of another number of threads", file, detail, fix))
    raise_if_any(problems)
    return Times(steps, seconds or 0.0)


def threads(request: Request) -> int | None:
    """Threads of a training on a CPU; nnU-Net takes one per core unless told."""
    return (request.threads or os.cpu_count()) if request.device == "cpu" else None


def commit() -> str | None:
    """Commit of the code that measures, if it is a clone."""
    asked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or None
