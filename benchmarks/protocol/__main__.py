"""A published protocol as one command: semi-supervised methods and their controls, over seeds.

    python -m benchmarks.protocol la8 --data ../shared/data --folder OUT

    python -m benchmarks.protocol acdc --labeled 3 --trainer nnUNetTrainerCrossMatch --seeds 0 1 2 --minutes 60 \\
        --data ACDC --folder acdc3 --plan
    python -m benchmarks.protocol acdc --labeled 3 --trainer nnUNetTrainerCrossMatch --seeds 0 1 --steps 3000 --small \\
        --data ACDC --folder small3

Converts, plans, preprocesses, measures the step times, trains each row and seed, predicts with the final weights,
scores by both conventions and writes OUT/results. Killed, it goes on where it was when called again. See
docs/protocols.md.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.protocol.request import (
    FOLDER,
    PLANNERS,
    SOURCES,
    Request,
    all_labeled,
    check_data,
    claim_folder,
    environment,
    request_of,
    split_lists,
    variables,
    write_json,
)
from benchmarks.protocol.rows import (
    ROWS,
    TITLES,
    Length,
    Pace,
    Run,
    leaders,
    measuring,
    plan_runs,
    settings_of,
    variant_of,
)
from benchmarks.protocol.steps import Protocol, Step, run_steps, runs_with_controls, write_script
from benchmarks.protocol.tasks import STEPS, TASKS
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.errors import command
from nnunetv2_crossmatch.methods.settings import TRAINER_NAME

HELP = {
    "--trainer": "trainer names; length and seed in them are replaced",
    "--seeds": "each row is trained with each (default: 0 1 2)",
    "--minutes": "training time of one CrossMatch run; the measured step time makes epochs of it",
    "--steps": "instead: training steps of one CrossMatch run",
    "--rows": "default: all",
    "--on": "list that is scored: val for choices (LA: 10 training cases held out), test once, for the final table",
    "--small": "for CPUs: small patch, up to four stages, FEATURES in the first one (default: 16); 2d: 96 x 96 pixels "
    "(la: of 1.25 mm, acdc: 2.5 mm), batch 4 + 4; 3d: --patch, batch 2 + 2",
    "--patch": "of --small, in voxels; multiples of 4",
    "--classes": "names of the labels 1, 2, ... of a folder without dataset.json (default: class 1, ...)",
    "--channels": "names of its channels (default: channel 0, ...)",
    "dataset": f"la, acdc, a task ({', '.join(TASKS)}), or a folder with images, labels and split lists",
    "--data": "what the converter of la or acdc reads; of a task, the folder of the data sets",
    "--labeled": "labeled cases (ACDC: patients)",
    "--diagnose": "log the true Dice of the pseudo-labels of CrossMatch rows",
    "--splits": "own split lists (see --help of the converters)",
    "--spacing": "voxel size in mm of ACDC HDF5 files: adds the measures in mm",
    "--allow-missing": "go on without listed cases that the folder lacks",
    "--step-seconds": "step times measured before; nothing is measured then",
    "--plan": "convert, preprocess and measure if that is not done yet, print the plan and the time, and stop; with "
    "--step-seconds only print",
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("dataset", metavar="DATASET", help=HELP["dataset"])
    add("--labeled", type=positive, metavar="N", help=HELP["--labeled"])
    add("--trainer", nargs="+", default=[TRAINER_NAME], metavar="NAME", help=HELP["--trainer"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help=HELP["--seeds"])
    length = result.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=positive_number, metavar="M", help=HELP["--minutes"])
    length.add_argument("--steps", type=positive, metavar="N", help=HELP["--steps"])
    add("--data", type=Path, metavar="FOLDER", help=HELP["--data"])
    add("--folder", type=Path, required=True, metavar="OUT", help="everything is written there")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help=HELP["--rows"])
    add("--on", dest="scored_on", choices=("val", "test"), default="val", help=HELP["--on"])
    add("--configuration", choices=("2d", "3d_fullres"), help="default: la 3d_fullres, acdc 2d")
    add("--network", choices=tuple(PLANNERS), default="plain", help="planned network (default: %(default)s)")
    add("--small", nargs="?", type=positive, const=16, metavar="FEATURES", help=HELP["--small"])
    add("--patch", nargs="+", type=positive, metavar="VOXELS", help=HELP["--patch"])
    add("--classes", nargs="+", metavar="NAME", help=HELP["--classes"])
    add("--channels", nargs="+", metavar="NAME", help=HELP["--channels"])
    add("--diagnose", action="store_true", help=HELP["--diagnose"])
    add("--splits", type=Path, metavar="FILE", help=HELP["--splits"])
    add("--spacing", nargs=3, type=positive_number, metavar=("Z", "Y", "X"), help=HELP["--spacing"])
    add("--allow-missing", action="store_true", help=HELP["--allow-missing"])
    seconds = ("CROSSMATCH", "SUPERVISED")
    add("--step-seconds", nargs=2, type=positive_number, metavar=seconds, help=HELP["--step-seconds"])
    add("--plan", action="store_true", help=HELP["--plan"])
    return result


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def positive_number(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def complete(arguments: argparse.Namespace) -> None:
    """Fill in what a task says and what follows from the data set; options that were given stay."""
    task = TASKS.get(arguments.dataset)
    if task:
        if arguments.data:
            arguments.data = arguments.data / task["place"]
        if not arguments.minutes:
            arguments.steps = arguments.steps or STEPS
        arguments.dataset = task.get("dataset", FOLDER)
        for name in task.keys() - {"dataset", "place"}:
            setattr(arguments, name, getattr(arguments, name) or task[name])
    elif arguments.dataset not in SOURCES and Path(arguments.dataset).is_dir():
        arguments.dataset, arguments.data = FOLDER, Path(arguments.dataset)
    is_2d = arguments.dataset == "acdc" or (arguments.small and not arguments.patch)
    arguments.configuration = arguments.configuration or ("2d" if is_2d else "3d_fullres")


def contradiction(arguments: argparse.Namespace) -> str | None:
    """What is missing in completed arguments or contradicts something else in them, for the usage line."""
    axes = 2 if arguments.configuration == "2d" else 3
    needed = {"--labeled": arguments.labeled, "--data": arguments.data, "--steps or --minutes": length_given(arguments)}
    if arguments.dataset not in (*SOURCES, FOLDER):
        return f"DATASET: {arguments.dataset} is neither la, acdc, {', '.join(TASKS)} nor a folder"
    if lacking := [name for name, value in needed.items() if not value]:
        return f"missing: {', '.join(lacking)}"
    if arguments.small and arguments.network != "plain":
        return "--small is for the plain network"
    if arguments.patch and not arguments.small:
        return "--patch is for --small"
    if arguments.small and axes == 3 and not arguments.patch:
        return "--small in 3d needs --patch"
    if arguments.patch and (len(arguments.patch) != axes or any(size % 4 or size < 8 for size in arguments.patch)):
        return f"--patch: {axes} multiples of 4 from 8 on"
    if arguments.spacing and arguments.dataset != "acdc":
        return "--spacing is for ACDC's HDF5 files"
    return None


def length_given(arguments: argparse.Namespace) -> bool:
    """Whether the length is given, in either way."""
    return bool(arguments.steps or arguments.minutes)


def read_request(options: argparse.ArgumentParser) -> tuple[Request, Path, bool]:
    """Request, folder and whether only the plan is wanted; ends the program where options contradict each other."""
    arguments = options.parse_args()
    complete(arguments)
    if error := contradiction(arguments):
        options.error(error)
    variants = [variant_of(settings_of(name)) for name in arguments.trainer]
    if len(set(variants)) < len(variants):
        options.error("--trainer: two names differ in nothing but length and seed, which the protocol sets")
    request = request_of(arguments, "cuda" if torch.cuda.is_available() else "cpu")
    return request, arguments.folder.resolve(), arguments.plan


def prepared_stages(request: Request, folder: Path, lists: Mapping[str, list[str]]) -> Stages:
    """Claim the folder, write the lists, and return stages that run in it.

    Raises:
        InputError: there are no data, nothing to score in them, or the folder belongs to another protocol.
    """
    check_data(request, lists)
    claim_folder(folder, request)
    protocol, added = Protocol(request, folder), variables(folder, request.device)
    write_json(protocol.splits_file(False), lists)
    write_json(protocol.splits_file(True), all_labeled(lists))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        Path(added[name]).mkdir(exist_ok=True)
    return Stages(0, folder, environment(added))


def measured_paces(protocol: Protocol, stages: Stages) -> dict[str, Pace]:
    """Step times of every distinct control and the first trainer beside it, by short trainings of both."""
    paces = {}
    for control, leader in leaders(protocol.request.trainer).items():
        trainers = measuring(leader, length_of(protocol.request))
        run_steps(stages, [protocol.train(trainer) for trainer in trainers.values()])
        paces[control] = protocol.pace(trainers)
    return paces


def given_paces(request: Request) -> dict[str, Pace] | None:
    """The step times on the command line, or None."""
    if request.step_seconds is None:
        return None
    return {control: Pace(*request.step_seconds) for control in leaders(request.trainer)}


def length_of(request: Request) -> Length:
    """How long a CrossMatch run is."""
    return Length(request.steps, request.minutes)


def runs_of(request: Request, paces: Mapping[str, Pace]) -> list[Run]:
    """All trainings of the request."""
    return plan_runs(request.trainer, request.seeds, request.rows, length_of(request), paces, request.diagnose)


def plan_text(runs: Sequence[Run], paces: Mapping[str, Pace], steps: Sequence[Step]) -> str:
    """Step times, runs with their expected time, and every command."""
    speeds = [
        f"seconds per step: CrossMatch {pace.crossmatch:.3f}, supervised {pace.supervised:.3f}, "
        f"ratio {pace.crossmatch / pace.supervised:.2f}  ({control})"
        for control, pace in paces.items()
    ]
    rows = [
        f"{TITLES[run.row]:40} seed {run.seed}  {run.steps:7d} steps {clock(run.seconds)}  {run.trainer}"
        for run in runs
    ]
    total = f"training time of {len(runs)} runs: {clock(sum(run.seconds for run in runs))} h:mm"
    commands = [shlex.join(step.command) for step in steps]
    return "\n".join(["Commands", *commands, "", "Step times", *speeds, "", "Runs", *rows, total])


def clock(seconds: float) -> str:
    """Hours and minutes."""
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}"


def run_protocol(request: Request, folder: Path, plan_only: bool) -> str:
    """Do all that is not done yet; returns what to say at the end."""
    protocol, lists, paces = Protocol(request, folder), split_lists(request), given_paces(request)
    if plan_only and paces is not None:
        runs = runs_of(request, paces)
        return plan_text(runs, paces, [*protocol.data_steps(), *runs_with_controls(protocol, runs)])
    stages = prepared_stages(request, folder, lists)
    run_steps(stages, protocol.data_steps())
    paces = paces or measured_paces(protocol, stages)
    runs = runs_of(request, paces)
    steps = runs_with_controls(protocol, runs)
    if plan_only:
        return plan_text(runs, paces, steps)
    write_json(folder / "runs.json", [asdict(run) for run in runs])
    write_json(folder / "step_times.json", {control: asdict(pace) for control, pace in paces.items()})
    every = [*protocol.data_steps(), *steps, protocol.final_step()]
    write_script(folder / "commands.sh", variables(folder, request.device), every)
    run_steps(stages, steps)
    stages.total += 1
    stages.run(*protocol.final_step().command)
    return f"written: {folder / 'results' / 'results.md'}"


@command
def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running command is stopped and saves, too
    request, folder, plan_only = read_request(parser())
    print(run_protocol(request, folder, plan_only))


if __name__ == "__main__":
    main()
