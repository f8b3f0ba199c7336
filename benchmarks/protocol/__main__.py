"""A published protocol as one command: semi-supervised methods and their controls, over seeds.

    python -m benchmarks.protocol la8 --data ../shared/data --folder OUT

Converts, plans, preprocesses, measures the step times, trains each row and seed, predicts with the final weights,
scores each way and writes OUT/results. Killed, it goes on where it was when called again. See docs/protocols.md.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.protocol.options import parser, read_request
from benchmarks.protocol.request import (
    Request,
    all_labeled,
    check_data,
    claim_folder,
    environment,
    split_lists,
    variables,
)
from benchmarks.protocol.results import publish, write_results
from benchmarks.protocol.rows import SELF_TRAINING, Budget, Run, Times, plan_runs, trainers_to_time
from benchmarks.protocol.steps import Protocol, Step, Training, read_runs, run_steps, runs_with_controls, write_script
from benchmarks.protocol.timing import (
    PREDICTION,
    measuring,
    read_times,
    refuse_busy,
    step_seconds,
    threads,
    write_times,
)
from benchmarks.protocol.trainers import control_of, timed
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.errors import InputError, Problem, command, command_line, raise_if_any, system_reason
from nnunetv2_crossmatch.folders import write_json

TIMES = "step_times.json"
RUNS = "runs.json"


def prepared(request: Request, folder: Path, lists: Mapping[str, list[str]]) -> tuple[Protocol, Stages]:
    """Claim the folder, write the lists, and return what is done in it and the stages that run there.

    Raises:
        InputError: there are no data, nothing to score in them, or the folder belongs to another protocol.
    """
    check_data(request, lists)
    protocol, added = Protocol(claim_folder(folder, request), folder), variables(folder, request)
    write_json(protocol.splits_file(False), lists)
    write_json(protocol.splits_file(True), all_labeled(lists))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        Path(added[name]).mkdir(exist_ok=True)
    return protocol, Stages(0, folder, environment(added))


def do(stages: Stages, steps: Sequence[Step]) -> None:
    """Run the steps that are not done yet, counted beside those before."""
    stages.total += len(steps)
    run_steps(stages, steps)


def measured_times(protocol: Protocol, stages: Stages, request: Request) -> Times:
    """Step times of all trainers of ``request``, by short trainings, and of the prediction where a row needs it.

    Those measured in the folder before count.

    Raises:
        InputError: the machine was busy.
    """
    file = protocol.folder / TIMES
    names = trainers_to_time(request.trainer, request.rows)
    known = read_times(file, request, [], predicted=False) if file.exists() else Times({})
    short = {name: Training(measuring(name, request.steps)) for name in names if name not in known.step}
    do(stages, [protocol.train(training) for training in short.values()])
    measured = {name: step_seconds(protocol.fold(one), one.trainer) for name, one in short.items()}
    refuse_busy(measured, {name: protocol.fold(one) for name, one in short.items()})
    prediction = None
    if needs_prediction(request) and not known.prediction:
        prediction = measured_prediction(protocol, stages)
    if measured or prediction:
        write_times(file, request, measured, prediction)
    return read_times(file, request, names, needs_prediction(request))


def measured_prediction(protocol: Protocol, stages: Stages) -> float:
    """Seconds of predicting the unlabeled cases with the network of the shortest training of the control."""
    request = protocol.request
    control = measuring(timed(control_of(request.trainer[0])), request.steps)
    start = time.monotonic()
    stages.total += 1
    stages.run(*protocol.measured_prediction(control).command)
    return time.monotonic() - start


def needs_prediction(request: Request) -> bool:
    """Whether a row predicts the unlabeled cases between two trainings."""
    return bool(set(request.rows) & set(SELF_TRAINING))


def given_times(request: Request) -> Times | None:
    """The step times on the command line or in the file that it names, or None."""
    names = trainers_to_time(request.trainer, request.rows)
    if request.step_times:
        return read_times(Path(request.step_times), request, names, needs_prediction(request))
    if request.step_seconds is None:
        return None
    semi_supervised, supervised = request.step_seconds
    controls = {timed(control_of(name)) for name in names}
    each = {name: supervised if name in controls else semi_supervised for name in names}
    return Times(each, request.prediction_seconds or 0.0)


def runs_of(request: Request, times: Times, planned: Sequence[Run] = ()) -> list[Run]:
    """All trainings of the request; those ``planned`` before stay as they are."""
    budget = Budget(request.steps, request.minutes)
    return plan_runs(request.trainer, request.seeds, request.rows, budget, times, request.diagnose, planned)


def plan_text(runs: Sequence[Run], times: Times, steps: Sequence[Step]) -> str:
    """Step times, runs with their expected time, and every command."""
    shortest = min(times.step.values())
    speeds = [f"{each:8.3f} s per step, ratio {each / shortest:.2f}  {name}" for name, each in times.step.items()]
    rows = [f"{run.title:45} seed {run.seed}  {run.steps:7d} steps {clock(run.seconds)}  {run.trainer}" for run in runs]
    total = f"training time of {len(runs)} runs: {clock(sum(run.seconds for run in runs))} h:mm"
    commands = [command_line(*step.command) for step in steps]
    return "\n".join(["Commands", *commands, "", "Step times", *speeds, "", "Runs", *rows, total])


def clock(seconds: float) -> str:
    """Hours and minutes."""
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}"


def plan_only(request: Request, folder: Path, times: Times) -> str:
    """The plan without a look at the data."""
    protocol, runs = Protocol(request, folder), runs_of(request, times)
    return plan_text(runs, times, [*protocol.data_steps(), *runs_with_controls(protocol, runs)])


def run_protocol(request: Request, arguments: argparse.Namespace) -> str:
    """Do all that is not done yet; returns what to say at the end."""
    folder, times = arguments.folder, given_times(request)
    if arguments.plan and times is not None:
        return plan_only(request, folder, times)
    protocol, stages = prepared(request, folder, split_lists(request))
    with alone_in(folder):
        do(stages, protocol.data_steps())
        planned = read_runs(folder / RUNS) if (folder / RUNS).exists() else []
        times = times or measured_times(protocol, stages, request)
        runs = runs_of(request, times, planned)
        if arguments.plan:
            return plan_text(runs, times, runs_with_controls(protocol, runs))
        every = [*planned, *(run for run in runs if run not in planned)]
        write_plan(protocol, every, times)
        return run_all(protocol, stages, runs, arguments.copy_to, every)


def write_plan(protocol: Protocol, runs: Sequence[Run], times: Times) -> None:
    """Keep the plan, which a later call goes on with, and a script of all commands."""
    folder, request = protocol.folder, protocol.request
    if request.step_times:
        shutil.copyfile(request.step_times, folder / TIMES)
    elif request.step_seconds:
        given = {"given": True, "threads": threads(request), PREDICTION: times.prediction}
        write_json(folder / TIMES, {**given, "seconds_per_step": dict(times.step)})
    every = [*protocol.data_steps(), *runs_with_controls(protocol, runs), protocol.final_step()]
    write_script(folder / "commands.sh", variables(folder, request), every)
    write_json(folder / RUNS, [asdict(run) for run in runs])


def run_all(
    protocol: Protocol, stages: Stages, runs: Sequence[Run], copy_to: Path | None, planned: Sequence[Run]
) -> str:
    """Train, predict and score the runs; the results are written anew, and copied, after each.

    ``planned``: all that the folder has, the controls among them that the runs are compared with.
    """
    by_name = {run.name: run for run in planned}
    steps = {run.name: protocol.run_steps(run, by_name.get(run.control)) for run in runs}
    stages.total += sum(map(len, steps.values()))
    for name, each in steps.items():
        fresh = not all(step.proof(protocol.folder).exists() for step in each)
        run_steps(stages, each)
        if fresh or name == runs[-1].name:
            write_results(protocol.folder)
            if copy_to:
                publish(protocol.folder, copy_to)
    return f"written: {protocol.folder / 'results' / 'results.md'}"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on ``folder``; it ends with this process, however it does.

    Raises:
        InputError: another process holds it.
    """
    lock = FileLock(folder / ".running.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        fix = "wait until it has ended, or stop it"
        raise InputError(Problem("another process works here", folder, "the folder is locked", fix)) from None
    try:
        yield
    finally:
        lock.release()


def run_queue(file: Path) -> None:
    """Run the calls in ``file`` one after the other; lines added meanwhile are run, too.

    Raises:
        InputError: of every line that failed; the others were run nevertheless.
    """
    problems: list[Problem] = []
    done: set[str] = set()
    while waiting := [line for line in queued(file) if line not in done]:
        calls = [read_request(parser(), shlex.split(line)) for line in waiting]  # wrong options of any end all at once
        done.add(waiting[0])
        try:
            print(run_protocol(*calls[0]), flush=True)
        except InputError as error:
            print(error, file=sys.stderr, flush=True)
            problems += error.problems
    raise_if_any(problems)


def queued(file: Path) -> list[str]:
    """The lines of a queue, without comments and empty ones.

    Raises:
        InputError: it cannot be read.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        detail = system_reason(error)
        raise InputError(Problem("queue unreadable", file, detail, "check the path")) from error
    return [line for line in lines if line and not line.startswith("#")]


@command
def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running command is stopped and saves, too
    queue = parser().parse_args().queue
    if queue:
        run_queue(queue)
    else:
        print(run_protocol(*read_request(parser())))


if __name__ == "__main__":
    main()
