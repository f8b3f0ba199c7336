"""Trainers in this process, on the tiny data set."""

from __future__ import annotations

import json
from typing import Any

import torch
from conftest import TinyDataset
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name


def make_trainer(tiny: TinyDataset, name: str, configuration: str = "2d", fold: int | str = "all") -> Any:
    """The trainer as ``nnUNetv2_train`` makes it; the environment must point to ``tiny``."""
    plans = json.loads(tiny.plans_file.read_text())
    plans["continue_training"] = False
    dataset_json = json.loads((tiny.preprocessed / "dataset.json").read_text())
    trainer = recursive_find_trainer_class_by_name(name)
    return trainer(plans, configuration, fold, dataset_json, torch.device("cpu"))


def started(tiny: TinyDataset, name: str, configuration: str = "2d") -> Any:
    """A trainer that has gone through ``on_train_start`` and the first epoch's start."""
    trainer = make_trainer(tiny, name, configuration)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer
