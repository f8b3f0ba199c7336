"""Export of a trained model to unmodified ("stock") nnU-Net, for use without this package.

Limit: changes only names and metadata; names and order of the weights are those of stock nnU-Net already.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import save_json

from nnunetv2_crossmatch import __version__
from nnunetv2_crossmatch.data.manifest import file_info
from nnunetv2_crossmatch.data.planned_network import planned_shapes
from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_plans_file
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.folders import DATASET_NAME, atomic_folder, check_names
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint, other_networks, trained_with, write_checkpoint

STOCK_TRAINER = "nnUNetTrainer"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
FOLD_FILES = ("progress.png", "debug.json", "validation/summary.json")
NNUNET_ENTRIES = (
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "inference_allowed_mirroring_axes",
)  # fmt: skip
"""Entries of nnU-Net's own checkpoints besides the trainer's name; entries of this package are not exported."""

ORIGIN_KEY = "crossmatch_origin"
MEAN = "mean"
"""The trained network and the second one as two folds, whose mean nnU-Net predicts with."""


def export_model(
    model_folder: Path,
    output_folder: Path,
    unfinished: bool = False,
    trusted: Sequence[str] = (),
    weights: str = "network",
) -> Path:
    """Write a copy of a trained model for stock nnU-Net, which predicts the same voxels as this package.

    ``output_folder`` has the layout of ``$nnUNet_results``, as ``nnUNetv2_export_model_to_zip`` and
    ``nnUNetv2_install_pretrained_model_from_zip`` need it. The origin of the model is recorded in
    ``crossmatch_origin.json`` and in each checkpoint.

    Args:
        model_folder: ``.../DatasetXXX_Name/<trainer>__<plans>__<configuration>``.
        output_folder: is created if it does not exist.
        unfinished: also export folds without a final checkpoint.
        trusted: names of own classes that the plans may contain; see :func:`plans_check.check_plans`.
        weights: of the trained ``network``, of the moving average of it (``teacher``), of the second one (``peer``),
            or of the first and the second one as two folds (``mean``).

    Returns:
        The exported model folder.

    Raises:
        InputError: ``model_folder`` is no model folder or has no readable checkpoint, a fold is not finished, was
            trained with other plans or has weights of another network, the plans name foreign classes, the method has
            no such ``weights``, or the export exists already.
    """
    model_folder = model_folder.resolve()
    check_names([model_folder, output_folder.resolve()])
    target = _exported_folder(model_folder, output_folder)
    plans = check_plans_file(model_folder / "plans.json", trusted)
    description = check_dataset_file(model_folder / "dataset.json")
    shapes = planned_shapes(plans, model_folder.name.split("__")[2], description)
    checkpoints = _find_checkpoints(model_folder, unfinished)
    epochs = _check_training(model_folder, plans, shapes, checkpoints)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as partial:
        origin = _make_origin_record(model_folder, checkpoints, epochs) | {"weights": weights}
        _copy_existing(MODEL_FILES, model_folder, partial)
        for file, fold, chosen in _exported_folds(checkpoints, weights):
            _copy_existing(FOLD_FILES, file.parent, partial / fold)
            checkpoint = with_weights(load_checkpoint(file), file, chosen)
            stock = make_stock_checkpoint(checkpoint, origin | {"weights": chosen})
            write_checkpoint(stock, partial / fold / file.name)
        save_json(origin, str(partial / f"{ORIGIN_KEY}.json"), sort_keys=False)
    return target


def _exported_folds(checkpoints: Sequence[Path], weights: str) -> list[tuple[Path, str, str]]:
    """Checkpoint, name of its exported fold, and whose weights that has; second networks get the next free numbers."""
    folds = [(file, file.parent.name, "network" if weights == MEAN else weights) for file in checkpoints]
    if weights != MEAN:
        return folds
    names = dict.fromkeys(file.parent.name for file in checkpoints)
    free = 1 + max([int(name.removeprefix("fold_")) for name in names if name != "fold_all"], default=-1)
    numbers = {name: number for number, name in enumerate(names, free)}
    return folds + [(file, f"fold_{numbers[file.parent.name]}", "peer") for file in checkpoints]


def _copy_existing(names: Sequence[str], source: Path, target: Path) -> None:
    """Copy files, with the folders in their names, as far as they exist; ``target`` is made."""
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


def with_weights(checkpoint: dict[str, Any], file: Path, weights: str) -> dict[str, Any]:
    """``checkpoint`` of ``file`` with the ``weights`` of one of ``checkpoints.WEIGHTS`` in the place of the network's.

    Raises:
        InputError: the method has no such network.
    """
    if weights == "network":
        return checkpoint
    there = other_networks(checkpoint)
    if weights not in there:
        detail = f"{checkpoint['trainer_name']} trained no {weights}"
        fix = f"use --weights {' or '.join(['network', *there])}"
        raise InputError(Problem("no such weights", file, detail, fix))
    return {**checkpoint, "network_weights": there[weights]}


def make_stock_checkpoint(checkpoint: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """``checkpoint`` with the stock trainer's name, nnU-Net's entries only, and the record of its origin."""
    entries = {name: checkpoint[name] for name in NNUNET_ENTRIES if name in checkpoint}
    return {**entries, "trainer_name": STOCK_TRAINER, ORIGIN_KEY: origin}


def files_missing_for_zip_export(model_folder: Path) -> list[str]:
    """Files that ``nnUNetv2_export_model_to_zip`` needs and ``model_folder`` lacks (written by validation)."""
    needed = [
        f"{fold.name}/{name}" for fold in _find_folds(model_folder) for name in FOLD_FILES if name != "debug.json"
    ]
    return [name for name in (*MODEL_FILES, *needed) if not (model_folder / name).is_file()]


def _exported_folder(model_folder: Path, output_folder: Path) -> Path:
    """Folder of the exported model; raises ``InputError`` if it exists or ``model_folder`` is no model folder."""
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


def _find_folds(model_folder: Path) -> list[Path]:
    return sorted(fold for fold in model_folder.glob("fold_*") if re.fullmatch(r"fold_(\d+|all)", fold.name))


def _find_checkpoints(model_folder: Path, unfinished: bool) -> list[Path]:
    """Checkpoints of all folds; raises ``InputError`` for folds without one, or without a final one."""
    folds = {fold: [fold / n for n in CHECKPOINTS if (fold / n).is_file()] for fold in _find_folds(model_folder)}
    if not folds:
        raise InputError(Problem("no model", model_folder, "no fold_* in it", "give the folder that holds fold_*"))
    expected, remedy = " or ".join(CHECKPOINTS), "finish the training, or remove the folder"
    problems = [Problem("no checkpoint", fold, f"{expected} expected", remedy) for fold in folds if not folds[fold]]
    without_final = [fold for fold, files in folds.items() if files and files[0].name != CHECKPOINTS[0]]
    if not unfinished:
        detail = f"{CHECKPOINTS[0]} is missing"
        remedy = "finish the training, remove the folder, or export it as it is with --unfinished"
        problems += [Problem("training not finished", fold, detail, remedy) for fold in without_final]
    raise_if_any(problems)
    return [file for files in folds.values() for file in files]


def _check_training(
    model_folder: Path, plans: dict[str, Any], shapes: Mapping[str, torch.Size], checkpoints: Sequence[Path]
) -> dict[Path, int]:
    """Epochs of each checkpoint; raises ``InputError`` for those of other plans or with weights of other ``shapes``."""
    configuration = model_folder.name.split("__")[2]
    epochs, problems = {}, []
    for file in checkpoints:
        checkpoint = load_checkpoint(file)
        epochs[file] = int(checkpoint["current_epoch"])
        trained = trained_with(file, checkpoint)
        if _comparable(trained["plans"]) != _comparable(plans) or trained["configuration"] != configuration:
            detail = f"its plans or configuration are not those of {model_folder / 'plans.json'} and {configuration}"
            problems.append(Problem("other plans", file, detail, "remove the fold, or train it with these plans"))
        elif unlike := _unlike(checkpoint["network_weights"], shapes):
            detail = f"{len(unlike)} tensors are missing, foreign or of another shape, {unlike[0]} first"
            problems.append(Problem("weights of another network", file, detail, "restore it, or remove the fold"))
    raise_if_any(problems)
    return epochs


def _unlike(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> list[str]:
    """Names of ``weights`` that are not those of ``shapes``, sorted."""
    found = {name: value.shape for name, value in weights.items()}
    return sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))


def _comparable(plans: Mapping[str, Any]) -> dict[str, Any]:
    """``plans`` as JSON represents them, without nnU-Net's entry about continued training."""
    return {key: value for key, value in json.loads(json.dumps(plans)).items() if key != "continue_training"}


def predict_command(model_folder: Path, device: str) -> list[str]:
    """nnU-Net's command that predicts ``IMAGES`` with an exported model, as arguments."""
    folds = _find_folds(model_folder)
    names = [fold.name.removeprefix("fold_") for fold in folds]
    common = next((n for n in CHECKPOINTS if all((fold / n).is_file() for fold in folds)), CHECKPOINTS[0])
    options = ("-f", *names, "-chk", common, "-device", device)
    return ["nnUNetv2_predict_from_modelfolder", "-m", str(model_folder), "-i", "IMAGES", "-o", "OUT", *options]


def _make_origin_record(model_folder: Path, checkpoints: list[Path], epochs: Mapping[Path, int]) -> dict[str, Any]:
    stamps = {file: file_info(file) for file in checkpoints}
    return {
        "trainer": model_folder.name.split("__")[0],
        "dataset": model_folder.parent.name,
        "nnunetv2_crossmatch": __version__,
        "nnunetv2": version("nnunetv2"),
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoints": {
            str(file.relative_to(model_folder)): {
                "bytes": known.size,
                "crc32": f"{known.crc32:08x}",
                "epochs": epochs[file],
            }
            for file, known in stamps.items()
        },
    }
