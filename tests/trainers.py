"""Trainers in this process, on the tiny data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from conftest import TinyDataset
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name


def make_trainer(
    tiny: TinyDataset,
    name: str,
    configuration: str = "2d",
    fold: int | str = "all",
    continuing: bool = False,
    plans_name: str = "nnUNetPlans",
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Any:
    """The trainer as ``nnUNetv2_train`` makes it, with or without --c; the environment must point to ``tiny``."""
    plans = json.loads((tiny.preprocessed / f"{plans_name}.json").read_text())
    plans["continue_training"] = continuing
    dataset_json = json.loads((tiny.preprocessed / "dataset.json").read_text())
    trainer = recursive_find_trainer_class_by_name(name)
    return trainer(plans, configuration, fold, dataset_json, device)


def continued(tiny: TinyDataset, name: str) -> Any:
    """The trainer of ``nnUNetv2_train ... --c`` before it starts to train."""
    trainer = make_trainer(tiny, name, continuing=True)
    maybe_load_checkpoint(trainer, True, False)
    return trainer


def started(tiny: TinyDataset, name: str, configuration: str = "2d", plans_name: str = "nnUNetPlans") -> Any:
    """A trainer that has gone through ``on_train_start`` and the first epoch's start."""
    trainer = make_trainer(tiny, name, configuration, plans_name=plans_name)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def weights_of(trainer: Any) -> torch.Tensor:
    """All parameters of a trainer's network in one row, on their own memory."""
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.network.parameters()])


def resumed(tiny: TinyDataset, name: str) -> Any:
    """The trainer of ``nnUNetv2_train ... --c`` before its first step."""
    trainer = continued(tiny, name)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def steps(trainer: Any, count: int) -> list[dict]:
    """What the next steps report."""
    return [trainer.train_step(next(trainer.dataloader_train)) for _ in range(count)]


def flat(module: torch.nn.Module) -> torch.Tensor:
    """All parameters and buffers in one row, on their own memory."""
    return torch.cat([value.detach().flatten().clone() for value in module.state_dict().values()])


def untrained_model(tiny: TinyDataset, name: str, configuration: str = "3d_fullres", fold: int | str = "all") -> Path:
    """A model folder with the weights that a trainer begins with, named as a finished training leaves it."""
    trainer = make_trainer(tiny, name, configuration, fold)
    trainer.initialize()
    folder = Path(trainer.output_folder)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    shutil.copy(tiny.plans_file, folder.parent / "plans.json")
    shutil.copy(tiny.preprocessed / "dataset.json", folder.parent)
    return folder.parent
