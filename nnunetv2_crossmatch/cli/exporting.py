"""A trained model as a model of stock nnU-Net, for people who do not have this package.

Limit: the network is the stock one already, by name and order of its weights; only names and records change here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_json

from nnunetv2_crossmatch import __version__
from nnunetv2_crossmatch.data.manifest import file_info
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.folders import DATASET_NAME, atomic_folder
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint, write_checkpoint

STOCK_TRAINER = "nnUNetTrainer"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
FOLD_FILES = ("progress.png", "debug.json", "validation/summary.json")
HOST_ENTRIES = (
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "inference_allowed_mirroring_axes",
)  # fmt: skip
"""What the host's own checkpoints hold beside the trainer's name; entries of this package stay behind."""

ORIGIN = "crossmatch_origin"


def export_model(model_folder: Path, output_folder: Path) -> Path:
    """Write a copy of a trained model that stock nnU-Net predicts with, voxel for voxel as with this package.

    ``output_folder`` is laid out like ``$nnUNet_results``, so that ``nnUNetv2_export_model_to_zip`` packs it and
    ``nnUNetv2_install_pretrained_model_from_zip`` unpacks it elsewhere. Where the model came from is recorded in
    ``crossmatch_origin.json`` and in each checkpoint.

    Args:
        model_folder: ``.../DatasetXXX_Name/<trainer>__<plans>__<configuration>``.
        output_folder: created if it is missing.

    Returns:
        The exported model folder.

    Raises:
        InputError: it is no model folder, has no readable checkpoint, or was exported to ``output_folder`` before.
    """
    model_folder = model_folder.resolve()
    target = _target(model_folder, output_folder)
    checkpoints = _checkpoints(model_folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as partial:
        origin = _origin(model_folder, checkpoints)
        for file in _records(model_folder):
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model_folder / file, partial / file)
        for file in checkpoints:
            name = file.relative_to(model_folder)
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint(stock_checkpoint(load_checkpoint(file), origin), partial / name)
        save_json(origin, str(partial / f"{ORIGIN}.json"), sort_keys=False)
    return target


def stock_checkpoint(checkpoint: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """``checkpoint`` under the stock trainer's name, with the host's entries only and the record of its origin."""
    entries = {name: checkpoint[name] for name in HOST_ENTRIES if name in checkpoint}
    return {**entries, "trainer_name": STOCK_TRAINER, ORIGIN: origin}


def missing_for_zip(model_folder: Path) -> list[str]:
    """Files that ``nnUNetv2_export_model_to_zip`` asks for and ``model_folder`` lacks (written by validation)."""
    needed = [f"{fold.name}/{name}" for fold in _folds(model_folder) for name in FOLD_FILES if name != "debug.json"]
    return [name for name in (*MODEL_FILES, *needed) if not (model_folder / name).is_file()]


def _target(model_folder: Path, output_folder: Path) -> Path:
    """The exported model's folder; refuses what is no model folder, and what is there already."""
    parts = model_folder.name.split("__")
    named = len(parts) == 3 and DATASET_NAME.fullmatch(model_folder.parent.name)
    missing = [name for name in MODEL_FILES[:2] if not (model_folder / name).is_file()]
    if not named or missing:
        form = "DatasetXXX_Name/<trainer>__<plans>__<configuration> expected"
        detail = f"{', '.join(missing)} missing" if named else form
        raise InputError(Problem("no model folder", model_folder, detail, "give the folder that holds fold_*"))
    target = output_folder.resolve() / model_folder.parent.name / "__".join((STOCK_TRAINER, *parts[1:]))
    if target.exists():
        raise InputError(Problem("already there", target, "nothing is overwritten", "remove it or give another folder"))
    return target


def _folds(model_folder: Path) -> list[Path]:
    return sorted(fold for fold in model_folder.glob("fold_*") if re.fullmatch(r"fold_(\d+|all)", fold.name))


def _checkpoints(model_folder: Path) -> list[Path]:
    """Checkpoints of all folds; every fold must have one."""
    folds = {fold: [fold / name for name in CHECKPOINTS if (fold / name).is_file()] for fold in _folds(model_folder)}
    expected, remedy = " or ".join(CHECKPOINTS), "finish the training, or remove the folder"
    raise_if_any([Problem("no checkpoint", fold, f"{expected} expected", remedy) for fold in folds if not folds[fold]])
    if not folds:
        raise InputError(Problem("no model", model_folder, "no fold_* in it", "give the folder that holds fold_*"))
    return [file for files in folds.values() for file in files]


def _records(model_folder: Path) -> Iterator[Path]:
    """Files beside the checkpoints that the host's export carries, as far as they are there."""
    names = [*MODEL_FILES, *(f"{fold.name}/{name}" for fold in _folds(model_folder) for name in FOLD_FILES)]
    return (Path(name) for name in names if (model_folder / name).is_file())


def _origin(model_folder: Path, checkpoints: list[Path]) -> dict[str, Any]:
    stamps = {str(file.relative_to(model_folder)): file_info(file) for file in checkpoints}
    return {
        "trainer": model_folder.name.split("__")[0],
        "dataset": model_folder.parent.name,
        "nnunetv2_crossmatch": __version__,
        "nnunetv2": version("nnunetv2"),
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoints": {name: {"bytes": known.size, "crc32": f"{known.crc32:08x}"} for name, known in stamps.items()},
    }
