"""What a trained model's folder tells about it: settings, data, length of the training, and its curves.

Limit: reads; changes nothing, not even a damaged checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.errors import InputError, Problem, run_all
from nnunetv2_crossmatch.methods.names import method_of, settings_from_name
from nnunetv2_crossmatch.methods.tokens import ordered_fields
from nnunetv2_crossmatch.training.checkpoints import CANDIDATES, load_checkpoint
from nnunetv2_crossmatch.training.step_log import UNFINISHED

HOST_CURVES = {
    "train_losses": "training loss",
    "val_losses": "validation loss",
    "mean_fg_dice": "pseudo Dice on validation patches",
    "lrs": "learning rate",
}
"""Curves that the host logs, by what they are called here."""

TIMES = ("epoch_start_timestamps", "epoch_end_timestamps")


@dataclass(frozen=True)
class FoldRecord:
    """One training: ``curves`` maps a title, or a name that ``plots`` knows, to a value per epoch."""

    name: str
    checkpoint: str
    epochs: int
    hours: float
    curves: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class SettingRow:
    """One setting of the method as the trainer's name gives it."""

    token: str
    value: str
    meaning: str
    source: str
    is_default: bool


@dataclass(frozen=True)
class ModelRecord:
    """A model folder of the host; ``settings`` is empty for a trainer of someone else."""

    folder: Path
    trainer: str
    facts: Mapping[str, str]
    settings: tuple[SettingRow, ...]
    folds: tuple[FoldRecord, ...]


def read_model(folder: Path) -> ModelRecord:
    """Read ``.../<trainer>__<plans>__<configuration>`` with all of its folds.

    Raises:
        InputError: it is no model folder, or a checkpoint of it cannot be used.
    """
    checkpoints = [first for fold in sorted(folder.glob("fold_*")) if (first := first_checkpoint(fold)) is not None]
    if not checkpoints or not (folder / "plans.json").is_file():
        detail = "expected plans.json and fold_*/checkpoint_*.pth"
        fix = "give <results>/<data set>/<trainer>__<plans>__<configuration>"
        raise InputError(Problem("no trained model", folder, detail, fix))
    read = run_all(partial(read_fold, file) for file in checkpoints)
    trainer, facts, _ = read[-1]
    return ModelRecord(folder, trainer, facts, setting_rows(trainer), tuple(fold for _, _, fold in read))


def read_fold(file: Path) -> tuple[str, dict[str, str], FoldRecord]:
    """Trainer, facts of its plans, and the record of one training; the weights are let go."""
    checkpoint = load_checkpoint(file)
    trainer = str(checkpoint["trainer_name"])
    return trainer, facts_of(trainer, checkpoint["init_args"]), fold_record(file, checkpoint)


def first_checkpoint(fold: Path) -> Path | None:
    """The checkpoint that speaks for a fold: the final one if there is one."""
    return next((fold / name for name in CANDIDATES if (fold / name).is_file()), None)


def fold_record(file: Path, checkpoint: Mapping[str, Any]) -> FoldRecord:
    """Length and curves of one training."""
    logged = checkpoint.get("logging", {})
    curves = {title: logged[name] for name, title in HOST_CURVES.items() if logged.get(name)}
    known = {*HOST_CURVES, *TIMES, "ema_fg_dice", "dice_per_class_or_region", UNFINISHED}
    curves |= {name: values for name, values in logged.items() if name not in known and values}
    starts, ends = (logged.get(name, []) for name in TIMES)
    seconds = sum(end - start for start, end in zip(starts, ends, strict=False))
    return FoldRecord(file.parent.name, file.name, int(checkpoint["current_epoch"]), seconds / 3600, curves)


def facts_of(trainer: str, init_args: Mapping[str, Any]) -> dict[str, str]:
    """What the plans say about the configuration, as text."""
    plans = PlansManager(init_args["plans"])
    configuration = plans.get_configuration(init_args["configuration"])
    return {
        "data set": plans.dataset_name,
        "trainer": trainer,
        "plans": plans.plans_name,
        "configuration": str(init_args["configuration"]),
        "network": configuration.network_arch_class_name.rsplit(".", 1)[-1],
        "patch size": by(configuration.patch_size),
        "voxel size, mm": by(f"{size:.4g}" for size in configuration.spacing),
        "planned batch size": str(configuration.batch_size),
    }


def by(sizes: Any) -> str:
    """Lengths along the axes as ``a × b × c``."""
    return " × ".join(map(str, sizes))


def setting_rows(trainer: str) -> tuple[SettingRow, ...]:
    """Every setting of the method with its meaning and source; nothing for a trainer that is not ours."""
    if method_of(trainer) is None:
        return ()
    settings = settings_from_name(trainer)

    def row(field: Any) -> SettingRow:
        value, meta = getattr(settings, field.name), field.metadata
        shown = "automatic" if value is None else str(value)
        return SettingRow(meta["token"], shown, meta["meaning"], meta["source"], value == field.default)

    return tuple(row(field) for field in ordered_fields(settings))
