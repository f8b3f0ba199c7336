"""Reading of a trained model's folder: settings, data set, length of the training, and training curves.

Limit: reads only; leaves even a damaged checkpoint unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.data.plans_check import CONTENT_ERRORS
from nnunetv2_crossmatch.errors import InputError, Problem, run_all
from nnunetv2_crossmatch.methods.names import method_of, settings_from_name
from nnunetv2_crossmatch.methods.tokens import ordered_fields
from nnunetv2_crossmatch.training.checkpoints import CANDIDATES, load_checkpoint, trained_with
from nnunetv2_crossmatch.training.step_log import UNFINISHED

NNUNET_CURVES = {
    "train_losses": "training loss",
    "val_losses": "validation loss",
    "mean_fg_dice": "pseudo Dice on validation patches",
    "lrs": "learning rate",
}
"""Curves in nnU-Net's log: its name to the title in the report."""

EPOCH_TIMES = ("epoch_start_timestamps", "epoch_end_timestamps")


@dataclass(frozen=True)
class FoldRecord:
    """Training of one fold; ``curves`` maps a title, or a name of ``training.progress``, to a value per epoch."""

    name: str
    checkpoint: str
    epochs: int
    hours: float
    curves: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class SettingRow:
    """One setting of the method, read from the trainer's name."""

    token: str
    value: str
    meaning: str
    source: str
    is_default: bool


@dataclass(frozen=True)
class ModelRecord:
    """A model folder of nnU-Net; ``settings`` is empty for a trainer that is not part of this package."""

    folder: Path
    trainer: str
    properties: Mapping[str, str]
    settings: tuple[SettingRow, ...]
    folds: tuple[FoldRecord, ...]


def read_model(folder: Path) -> ModelRecord:
    """Read ``.../<trainer>__<plans>__<configuration>`` with all of its folds.

    Raises:
        InputError: it is no model folder, or one of its checkpoints is damaged.
    """
    checkpoints = [first for fold in sorted(folder.glob("fold_*")) if (first := preferred_checkpoint(fold)) is not None]
    if not checkpoints or not (folder / "plans.json").is_file():
        detail = "expected plans.json and fold_*/checkpoint_*.pth"
        fix = "give <results>/<data set>/<trainer>__<plans>__<configuration>"
        raise InputError(Problem("no trained model", folder, detail, fix))
    read = run_all(partial(read_fold, file) for file in checkpoints)
    trainer, properties, _ = read[-1]
    return ModelRecord(folder, trainer, properties, make_setting_rows(trainer), tuple(fold for _, _, fold in read))


def read_fold(file: Path) -> tuple[str, dict[str, str], FoldRecord]:
    """Trainer name, description of the plans, and record of one fold; the weights are not kept in memory."""
    checkpoint = load_checkpoint(file)
    trainer, trained = str(checkpoint["trainer_name"]), trained_with(file, checkpoint)
    try:
        return trainer, describe_plans(trainer, trained), make_fold_record(file, checkpoint)
    except CONTENT_ERRORS as error:
        detail = f"its plans or curves are no ones of nnU-Net: {type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(Problem("unusable checkpoint", file, detail, "leave -m out, or restore the file")) from error


def preferred_checkpoint(fold: Path) -> Path | None:
    """The final checkpoint of a fold, or else the first existing one of ``CANDIDATES``."""
    return next((fold / name for name in CANDIDATES if (fold / name).is_file()), None)


def make_fold_record(file: Path, checkpoint: Mapping[str, Any]) -> FoldRecord:
    """Length and curves of the training that wrote ``checkpoint``."""
    logged = checkpoint.get("logging", {})
    curves = {title: logged[name] for name, title in NNUNET_CURVES.items() if logged.get(name)}
    known = {*NNUNET_CURVES, *EPOCH_TIMES, "ema_fg_dice", "dice_per_class_or_region", UNFINISHED}
    curves |= {name: values for name, values in logged.items() if name not in known and values}
    starts, ends = (logged.get(name, []) for name in EPOCH_TIMES)
    for values in curves.values():
        np.reshape(np.asarray(values, float), len(values))  # raises for what is no curve
    seconds = sum(end - start for start, end in zip(starts, ends, strict=False))
    return FoldRecord(file.parent.name, file.name, int(checkpoint["current_epoch"]), seconds / 3600, curves)


def describe_plans(trainer: str, init_args: Mapping[str, Any]) -> dict[str, str]:
    """Data set, trainer, network, patch, voxel size and batch size of the plans, as text."""
    plans = PlansManager(init_args["plans"])
    configuration = plans.get_configuration(init_args["configuration"])
    return {
        "data set": plans.dataset_name,
        "trainer": trainer,
        "plans": plans.plans_name,
        "configuration": str(init_args["configuration"]),
        "network": configuration.network_arch_class_name.rsplit(".", 1)[-1],
        "patch size": format_sizes(configuration.patch_size),
        "voxel size, mm": format_sizes(f"{size:.4g}" for size in configuration.spacing),
        "planned batch size": str(configuration.batch_size),
    }


def format_sizes(sizes: Any) -> str:
    """Format the lengths of the axes as ``a × b × c``."""
    return " × ".join(map(str, sizes))


def make_setting_rows(trainer: str) -> tuple[SettingRow, ...]:
    """Every setting of the method with its meaning and source; empty for a trainer that is not part of this package."""
    if method_of(trainer) is None:
        return ()
    settings = settings_from_name(trainer)

    def row(field: Any) -> SettingRow:
        value, meta = getattr(settings, field.name), field.metadata
        shown = "automatic" if value is None else str(value)
        return SettingRow(meta["token"], shown, meta["meaning"], meta["source"], value == field.default)

    return tuple(row(field) for field in ordered_fields(settings))
