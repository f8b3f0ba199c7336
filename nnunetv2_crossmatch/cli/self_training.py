"""``nnUNetv2_crossmatch_self_training``: train, predict the unlabeled images, train again on both kinds of labels.

The simple alternative to a semi-supervised trainer, with nnU-Net's own commands. Limit: one fold; each step is a
command with a log of its own, and a call that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from nnunetv2_crossmatch import ext_trainers, folders
from nnunetv2_crossmatch.cli.pseudo_label import dataset_id, share
from nnunetv2_crossmatch.data.plans_check import check_dataset_file
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.errors import InputError, Problem, command, command_line
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.methods.names import METHODS, method_of, settings_from_name
from nnunetv2_crossmatch.prediction.pseudo_labeled import LIST, check_free, checked_name, unlabeled_images
from nnunetv2_crossmatch.prediction.second_training import FOLDS, prepare_second_training
from nnunetv2_crossmatch.training.named import check_found
from nnunetv2_crossmatch.training.supervised import HOST_NAME

STARTED = f"{METHODS[0].Settings.trainer}_unsup0_lr0p003"
"""nnU-Net's own step, in a trainer that can begin with a model, at a lower learning rate."""
FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class Part:
    """One step: a command, or a function with a title; it is done when ``proof`` exists.

    A proof in the folder of the logs is a mark that is set when a command has ended well.
    """

    proof: Path
    command: tuple[str, ...] = ()
    title: str = ""
    function: Callable[[], object] = lambda: None


def parser() -> argparse.ArgumentParser:
    """The command's options, named as those of ``nnUNetv2_train``."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_self_training",
        description="Self-training with nnU-Net's own commands: train on the labeled cases, predict imagesUn, make a "
        "new data set of both kinds of labels, and train on it from scratch, the labeled cases half of the time. "
        "What is done already is not done again.",
        epilog="Example: nnUNetv2_crossmatch_self_training 501 3d_fullres 0 -o 511",
    )
    add = result.add_argument
    add("dataset", metavar="ID", help="id or name of the data set with imagesUn; it is planned and preprocessed")
    add("configuration", metavar="CONFIG", help="2d, 3d_fullres or 3d_lowres")
    add("fold", help="0 to 4, or all")
    add("-o", required=True, type=dataset_id, metavar="NEW_ID", help="id of the new data set")
    add("-tr", default=HOST_NAME, metavar="TRAINER", help="of the first training (default: %(default)s)")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    other = f"the first one, or {HOST_NAME} if that learns from unlabeled images"
    add("--student", metavar="TRAINER", help=f"of the second training (default: {other})")
    add(
        "--start_from_first",
        action="store_true",
        help=f"begin the second training with the first model; then the default of --student is {STARTED}",
    )
    add("--keep", type=share, default=1.0, metavar="SHARE", help="use only this share of the predictions, the surest")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is one, else cpu")
    return result


@command
def main() -> None:
    """Run what is not done yet, and print where the model is."""
    given = parser().parse_args()
    source = folders.dataset_name(given.dataset)
    name = re.sub(r"Dataset\d+_?", "", source, count=1) + f"SelfTraining{given.fold}"
    target = f"Dataset{given.o:03d}_{name}"
    given.student = given.student or second_trainer(given.tr, given.start_from_first)
    os.environ.setdefault("nnUNet_extTrainer", next(iter(ext_trainers.__path__)))
    check_request(given, source, name)
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    log = folders.results_folder() / source / f"self_training_{given.o:03d}"
    parts = parts_of(given, source, target, log)
    check_same_predictions(folders.raw_folder() / target / LIST, parts[0].proof, given.keep)
    stages = Stages(len(parts), log, dict(os.environ))
    for part in parts:
        run(stages, part)
    model, fold = parts[-1].proof.parents[1], parts[-1].proof.parent.name.removeprefix("fold_")
    which = ("-d", str(given.o), "-c", given.configuration, "-f", fold, "-tr", given.student, "-p", given.p)
    predict = command_line("nnUNetv2_predict", "-i", "IMAGES", "-o", "PREDICTIONS", *which)
    print(f"Model: {model}\nPredict with it: {predict}")


def second_trainer(first: str, start_from_first: bool) -> str:
    """The trainer of the second training where none is named; for a method's there are no unlabeled images left."""
    if start_from_first:
        return STARTED
    return first if method_of(first) is None else HOST_NAME


def check_request(given: argparse.Namespace, source: str, name: str) -> None:
    """Raise :class:`InputError` for what the second training would fail of, before the first one takes its hours."""
    check_student(given.student, given.start_from_first)
    raw = folders.raw_folder()
    unlabeled_images(raw / source, check_dataset_file(raw / source / "dataset.json")["file_ending"])
    if not (raw / checked_name(given.o, name)).is_dir():
        check_free(given.o)


def check_student(trainer: str, start_from_first: bool) -> None:
    """Raise :class:`InputError` unless there is such a trainer, and it can learn from the second data set."""
    if start_from_first or method_of(trainer) is not None:
        if settings_from_name(trainer).unsupervised:
            detail, fix = "all images of the second training have labels", "add _unsup0, or name one of nnU-Net's"
            raise InputError(Problem("no unlabeled images", f"trainer name {trainer}", detail, fix))
    else:
        check_found(trainer)


def check_same_predictions(file: Path, checkpoint: Path, keep: float) -> None:
    """Raise :class:`InputError` if the list of predicted cases in ``file`` is of another model or share."""
    if not file.exists():
        return
    form = {"model": str, "keep": float, "checkpoints": dict}
    made = read_json(file, form, "restore it, or remove the data set and begin anew")
    model, name = checkpoint.parents[1], f"{checkpoint.parent.name}/{checkpoint.name}"
    if (made["model"], [*made["checkpoints"]], made["keep"]) != (str(model), [name], keep):
        detail = f"{', '.join(made['checkpoints'])} of {made['model']} with --keep {made['keep']:g}"
        raise InputError(Problem("predictions of another model", file, detail, "give the same options, or another -o"))


def run(stages: Stages, part: Part) -> None:
    """Run a step unless it is done."""
    if part.proof.exists():
        with stages.stage(f"done before: {part.title or command_line(*part.command)}"):
            return
    if part.command:
        stages.run(*part.command)
    else:
        with stages.stage(part.title):
            part.function()
    if part.proof.parent == stages.folder:
        part.proof.touch()
    if not part.proof.exists():
        detail = f"{part.title or command_line(*part.command)} ended without it"
        raise InputError(Problem("nothing written", part.proof, detail, "read its log, then run again"))


def parts_of(given: argparse.Namespace, source: str, target: str, log: Path) -> list[Part]:
    """The steps in their order."""
    device = ("-device", given.device)
    model = folders.results_folder() / source / f"{given.tr}__{given.p}__{given.configuration}"
    first, fold = model / f"fold_{given.fold}" / FINAL, "0" if given.fold == "all" else given.fold
    second = folders.results_folder() / target / f"{given.student}__{given.p}__{given.configuration}" / f"fold_{fold}"
    student = (str(given.o), given.configuration, fold, "-tr", given.student, "-p", given.p)
    number, name = folders.dataset_number(source), target.split("_", 1)[1]
    labels = ("-m", str(model), "-d", source, "-o", str(given.o), "--name", name, "-f", given.fold, *device)
    preprocessing = ("nnUNetv2_preprocess", "-d", str(given.o), "-plans_name", given.p, "-c", given.configuration)
    start = ("nnUNetv2_crossmatch_start_from", *student, "-m", str(first))
    teacher = (number, given.configuration, given.fold, "-tr", given.tr, "-p", given.p)
    return [
        Part(first, ("nnUNetv2_train", *teacher, *device, "--c")),
        Part(
            folders.raw_folder() / target / "dataset.json",
            ("nnUNetv2_crossmatch_pseudo_label", *labels, "--keep", str(given.keep)),
        ),
        Part(
            folders.preprocessed_folder() / target / FOLDS,
            title="plans and folds of the second training",
            function=partial(prepare_second_training, source, target, given.p, given.fold),
        ),
        Part(log / f"preprocessed_{given.configuration}", preprocessing),
        *(
            [Part(log / f"started_{given.configuration}_{fold}_{given.student}", start)]
            if given.start_from_first
            else []
        ),
        Part(second / FINAL, ("nnUNetv2_train", *student, *device, "--c")),
    ]
