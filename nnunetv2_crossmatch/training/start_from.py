"""A run that begins with the weights of a finished model of the same data, heads included.

nnU-Net's ``-pretrained_weights`` leaves the heads out and asks for no match of the labels: it is for other data. Limit:
makes the folder of a run that ``nnUNetv2_train --c`` then begins; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.data.manifest import file_crc32
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.folders import write_json
from nnunetv2_crossmatch.json_files import MissingFileError, read_json
from nnunetv2_crossmatch.training.checkpoints import LATEST, load_checkpoint, trained_with

FILE = "crossmatch_started_from.json"
SAME_PLANS = ("spacing", "normalization_schemes", "use_mask_for_norm", "architecture")
SAME_LABELS = ("channel_names", "labels", "regions_class_order")


def start_from(trainer: Any, model: Path) -> Path:
    """Write the checkpoint of epoch 0 with the weights in ``model``; returns it.

    Args:
        trainer: one of this package's, made and not initialized.
        model: a checkpoint of any trainer of nnU-Net, for the same configuration, labels and channels.

    Raises:
        InputError: it is of other plans or labels, the run's folder has checkpoints, or another process trains there.
    """
    saved = load_checkpoint(model)
    raise_if_any([*_folder_problems(trainer.folder), *_model_problems(trainer, model, trained_with(model, saved))])
    trainer.lock_folder()
    try:
        return _write_run(trainer, model, saved)
    finally:
        trainer.lock.release()
        trainer.lock = None


def _write_run(trainer: Any, model: Path, saved: Mapping[str, Any]) -> Path:
    trainer.initialize()
    try:
        trainer.bare_network.load_state_dict(saved["network_weights"])
    except (RuntimeError, TypeError) as error:
        detail = next(iter(str(error).splitlines()[1:]), str(error)).strip()
        fix = "give the checkpoint as it was trained"
        raise InputError(Problem("weights of another network", model, detail, fix)) from error
    origin = {"checkpoint": str(model), "crc32": file_crc32(model), "epochs": int(saved["current_epoch"])}
    write_json(trainer.folder / FILE, origin)
    trainer.save_latest()
    return trainer.folder / LATEST


def origin_of(folder: Path) -> dict[str, Any] | None:
    """CRC32 and epochs of the model that the run in ``folder`` began with; None if it began with random weights.

    Raises:
        InputError: the file that says so is damaged.
    """
    form = {"crc32": int, "epochs": int}
    fix = "restore it, or begin the run anew in another folder"
    try:
        content = read_json(folder / FILE, form, fix, "origin of the run unreadable")
    except MissingFileError:
        return None
    return {name: content[name] for name in form}


def _folder_problems(folder: Path) -> Iterator[Problem]:
    for file in sorted(folder.glob("checkpoint_*.pth")):
        yield Problem("run begun already", file, "nothing is overwritten", "continue it with --c, or remove it")


def _model_problems(trainer: Any, model: Path, trained: Mapping[str, Any]) -> Iterator[Problem]:
    """Plans and labels of a model that are not those of the run."""
    configuration = trained["plans"]["configurations"].get(trainer.configuration_name)
    if configuration is None or trained["configuration"] != trainer.configuration_name:
        detail = f"it was trained with {trained['configuration']}, the run is {trainer.configuration_name}"
        yield Problem("model of another configuration", model, detail, "give a model of this configuration")
        return
    planned = trainer.configuration_manager.configuration
    other = [name for name in SAME_PLANS if configuration.get(name) != planned.get(name)]
    other += [name for name in SAME_LABELS if trained["dataset_json"].get(name) != trainer.dataset_json.get(name)]
    if other:
        fix = "train the model with these plans and labels, or begin without it"
        yield Problem("model of other plans or labels", model, f"{', '.join(other)} differ", fix)
