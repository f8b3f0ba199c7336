"""``nnUNetv2_crossmatch_demo``: all steps from data conversion to scores on generated volumes."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

from nnunetv2_crossmatch.demo.run import FULL_SIZE, QUICK_SIZE, run_demo
from nnunetv2_crossmatch.errors import InputError, Problem, command, command_line

PICTURE = "crossmatch_demo.png"
DESCRIPTION = """Generate left-atrium-like volumes, convert, plan, preprocess, train the supervised host and CrossMatch
for equally many steps on 2 labeled (and 12 unlabeled) volumes, predict and evaluate 6 test volumes. Every command is
printed as a user would type it. Ends with a table and a picture; seven minutes on 2 idle CPU cores, twice that on older
ones. The numbers are printed as they come out and say nothing about patients."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_demo",
        description=DESCRIPTION,
        epilog="Example: nnUNetv2_crossmatch_demo --folder demo",
    )
    add = result.add_argument
    add("--folder", type=Path, help="empty or new folder that keeps everything (default: a temporary one, removed)")
    add("-o", type=Path, metavar="PNG", help=f"the picture (default: {PICTURE} in --folder, else in this folder)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add("-device", choices=("cuda", "cpu", "mps"), default=default, help="where to train (default: %(default)s)")
    add("--quick", action="store_true", help="smoke run of two steps on tiny volumes: its numbers mean nothing")
    return result


def prepare_folder(folder: Path | None) -> Path:
    """Create the working folder, or check that it is empty; returns its absolute path."""
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="crossmatch_demo_"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(Problem("folder not empty", folder, "the demo starts from nothing", "name a new folder"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@command
def main() -> None:
    """Run the demo; a temporary folder is removed after success only, which keeps the logs of a failure."""
    arguments = parser().parse_args()
    folder = prepare_folder(arguments.folder)
    picture = (arguments.o or (folder if arguments.folder else Path.cwd()) / PICTURE).resolve()
    if not picture.parent.is_dir():
        raise InputError(
            Problem("folder missing", picture.parent, "for the picture", command_line("mkdir", "-p", picture.parent))
        )
    print(f"Everything goes to {folder}; each command's own output to {folder / 'logs'}", flush=True)
    print(f"\n{run_demo(folder, picture, QUICK_SIZE if arguments.quick else FULL_SIZE, arguments.device)}")
    print(f"picture: {picture}")
    if arguments.folder is None:
        shutil.rmtree(folder)
