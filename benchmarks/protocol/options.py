"""The options of the protocol's command, what a task adds to them, and which of them contradict each other.

Limit: reads the command line; whether data, lists and folder are in order is seen to in ``request``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.protocol.request import FOLDER, PLANNERS, SOURCES, Request, request_of
from benchmarks.protocol.rows import ROWS, SELF_TRAINING, USUAL_ROWS
from benchmarks.protocol.tasks import STEPS, TASKS
from benchmarks.protocol.trainers import DEFAULT, control_of, method_of, timed, variant_of

DESCRIPTION = """\
A published protocol as one command: semi-supervised methods and their controls, over seeds.

    python -m benchmarks.protocol la8 --data ../shared/data --folder OUT
    python -m benchmarks.protocol acdc --labeled 3 --trainer nnUNetTrainerCrossMatch --seeds 0 1 --steps 3000 --small \\
        --data ACDC --folder OUT
    python -m benchmarks.protocol --queue FILE"""
HELP = {
    "--trainer": "trainer names; length and seed in them are replaced",
    "--seeds": "each row is trained with each (default: 0 1 2)",
    "--minutes": "time of every row; measured step times make steps of it",
    "--steps": "instead: the time of so many steps of the default CrossMatch",
    "--rows": f"default: {' '.join(USUAL_ROWS)}; of a task all",
    "--threads": "of each training and prediction on a CPU (default: one per core, as nnU-Net does)",
    "--step-times": "step_times.json of another folder of the same data, network and machine; nothing is measured then",
    "--prediction-seconds": "with --step-seconds: time of predicting the unlabeled cases, for self-training",
    "--copy-to": "folder that the numbers of each finished run are copied to",
    "--queue": "file with the arguments of one call per line; they are run one after the other",
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
    "--step-seconds": "step times measured before, of all semi-supervised trainers and all supervised ones",
    "--plan": "convert, preprocess and measure if that is not done yet, print the plan and the time, and stop; with "
    "--step-seconds or --step-times only print",
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.protocol",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("dataset", nargs="?", metavar="DATASET", help=HELP["dataset"])
    add("--labeled", type=positive, metavar="N", help=HELP["--labeled"])
    add("--trainer", nargs="+", default=[DEFAULT], metavar="NAME", help=HELP["--trainer"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help=HELP["--seeds"])
    length = result.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=positive_number, metavar="M", help=HELP["--minutes"])
    length.add_argument("--steps", type=positive, metavar="N", help=HELP["--steps"])
    add("--data", type=Path, metavar="FOLDER", help=HELP["--data"])
    add("--folder", type=Path, metavar="OUT", help="everything is written there")
    add("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)} ({HELP['--rows']})")
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
    add("--step-times", type=Path, metavar="FILE", help=HELP["--step-times"])
    add("--prediction-seconds", type=positive_number, metavar="S", help=HELP["--prediction-seconds"])
    add("--threads", type=positive, metavar="N", help=HELP["--threads"])
    add("--copy-to", type=Path, metavar="RESULTS", help=HELP["--copy-to"])
    add("--queue", type=Path, metavar="FILE", help=HELP["--queue"])
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
            arguments.steps = arguments.steps or task.get("steps", STEPS)
        arguments.dataset = task.get("dataset", FOLDER)
        for name in task.keys() - {"dataset", "place", "steps"}:
            setattr(arguments, name, getattr(arguments, name) or task[name])
        arguments.rows = arguments.rows or list(ROWS)
    elif arguments.dataset and arguments.dataset not in SOURCES and Path(arguments.dataset).is_dir():
        arguments.dataset, arguments.data = FOLDER, Path(arguments.dataset)
    arguments.rows = arguments.rows or list(USUAL_ROWS)
    is_2d = arguments.dataset == "acdc" or (arguments.small and not arguments.patch)
    arguments.configuration = arguments.configuration or ("2d" if is_2d else "3d_fullres")


def contradiction(arguments: argparse.Namespace) -> str | None:
    """What is missing in completed arguments or contradicts something else in them, for the usage line."""
    axes = 2 if arguments.configuration == "2d" else 3
    needed = {
        "--folder": arguments.folder,
        "--labeled": arguments.labeled,
        "--data": arguments.data,
        "--steps or --minutes": length_given(arguments),
    }
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
    if len({(method_of(name), variant_of(name)) for name in arguments.trainer}) < len(arguments.trainer):
        return "--trainer: two names differ in nothing but length and seed, which the protocol sets"
    if supervised := [name for name in arguments.trainer if timed(name) == timed(control_of(name))]:
        return f"--trainer: {', '.join(supervised)} is supervised; supervised rows are made of the other trainers"
    if arguments.step_seconds and set(arguments.rows) & set(SELF_TRAINING) and not arguments.prediction_seconds:
        return "--step-seconds needs --prediction-seconds for self-training"
    return None


def length_given(arguments: argparse.Namespace) -> bool:
    """Whether the length is given, in either way."""
    return bool(arguments.steps or arguments.minutes)


def read_request(
    options: argparse.ArgumentParser, given: Sequence[str] | None = None
) -> tuple[Request, argparse.Namespace]:
    """Request and all arguments; ends the program where options contradict each other."""
    arguments = options.parse_args(given)
    complete(arguments)
    if error := contradiction(arguments):
        options.error(error)
    arguments.folder = arguments.folder.resolve()
    return request_of(arguments, "cuda" if torch.cuda.is_available() else "cpu"), arguments
