"""``nnUNetv2_crossmatch_start_from``: let a run begin with a finished model of the same data set."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_plans_file
from nnunetv2_crossmatch.errors import command, command_line
from nnunetv2_crossmatch.methods.names import settings_from_name
from nnunetv2_crossmatch.training.named import trainer_class
from nnunetv2_crossmatch.training.start_from import start_from


def parser() -> argparse.ArgumentParser:
    """The command's options, named as those of ``nnUNetv2_train``."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_start_from",
        description="Make the folder of a run that begins with the weights of a finished model of the same data set, "
        "heads included; nnUNetv2_train --c then trains it. Give it a lower learning rate than a run from scratch.",
        epilog="Example: nnUNetv2_crossmatch_start_from 501 2d all -tr nnUNetTrainerCrossMatch_lr0p003 -m "
        "$nnUNet_results/Dataset501_LA/nnUNetTrainer__nnUNetPlans__2d/fold_all/checkpoint_final.pth",
    )
    add = result.add_argument
    add("dataset", metavar="ID", help="id or name of the data set")
    add("configuration", metavar="CONFIG", help="2d, 3d_fullres or 3d_lowres")
    add("fold", type=fold, help="0 to 4, or all")
    add("-tr", required=True, metavar="TRAINER", help="trainer of the run, one of this package's")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    add("-m", required=True, type=Path, metavar="CHECKPOINT", help="file of the model that the run begins with")
    return result


def fold(text: str) -> int | str:
    """``all``, or the number of a fold."""
    return text if text == "all" else int(text)


@command
def main() -> None:
    """Make the run's folder and print the command that trains it."""
    given = parser().parse_args()
    settings_from_name(given.tr)
    dataset = folders.dataset_name(given.dataset)
    source = folders.preprocessed_folder() / dataset
    plans = {**check_plans_file(source / f"{given.p}.json"), "continue_training": False}
    description = check_dataset_file(source / "dataset.json")
    arguments = plans, given.configuration, given.fold, description, torch.device("cpu")
    written = start_from(trainer_class(given.tr)(*arguments), given.m.resolve())
    run = given.dataset, given.configuration, given.fold
    train = ["nnUNetv2_train", *run, "-tr", given.tr, "-p", given.p, "--c"]
    print(f"Written: {written}\nTrain it: {command_line(*train)}")
