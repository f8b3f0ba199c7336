"""Disks, permissions, second starts and loggers of users' machines: what a training makes of them."""

from __future__ import annotations

import errno
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyDataset
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.logging import nnunet_logger
from trainers import make_trainer

from nnunetv2_crossmatch.data.case_preprocessing import save_case
from nnunetv2_crossmatch.errors import InputError, Problem, install_excepthook
from nnunetv2_crossmatch.training import durable, requirements
from nnunetv2_crossmatch.training.lock import lock_folder

NAME = "nnUNetTrainerCrossMatch_1epochs_iters2_valiters1"
STARTS = 20


def start_together(folder: Path, at_once, results) -> None:
    at_once.wait()
    try:
        lock = lock_folder(folder)
    except InputError as error:
        results.put(error.problems[0].what)
        at_once.wait()
    else:
        results.put("")
        at_once.wait()  # both have tried
        lock.release()


def test_of_two_starts_at_the_same_moment_one_trains(tmp_path: Path):
    fork = multiprocessing.get_context("fork")
    for number in range(STARTS):
        at_once, results = fork.Barrier(2), fork.SimpleQueue()
        both = [fork.Process(target=start_together, args=(tmp_path / str(number), at_once, results)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert sorted([results.get(), results.get()]) == ["", "another training runs"]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def test_a_results_folder_without_permission_to_write_is_told(prepared_copy: TinyDataset, read_only):
    folder = prepared_copy.results.parent
    with pytest.raises(InputError, match=f"not writable in {folder}: Read-only file system. Fix: chmod u.w {folder}"):
        make_trainer(prepared_copy, NAME)


ACCESS = {
    errno.EACCES: "no access",
    errno.EROFS: "no access",
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full",
}


@pytest.mark.parametrize(("number", "what"), ACCESS.items())
def test_an_error_of_permissions_or_space_in_any_command_is_one_line(number: int, what: str, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    install_excepthook()
    error = OSError(number, os.strerror(number), "/data/my file")
    with pytest.raises(SystemExit) as ended:
        sys.excepthook(OSError, error, None)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {what} in /data/my file: {os.strerror(number)}. Fix: ")


def test_an_error_of_another_kind_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    install_excepthook()
    sys.excepthook(FileNotFoundError, FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), None)
    assert "FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("1", "wandb not installed: nnUNet_wandb_enabled asks nnU-Net to log to it. Fix: pip install wandb"),
        ("yes", "unknown value: nnUNet_wandb_enabled is yes. Fix: export nnUNet_wandb_enabled=0"),
    ],
)
def test_logging_that_nnunet_cannot_do_is_told(prepared_copy: TinyDataset, value: str, told: str, monkeypatch):
    monkeypatch.setenv(requirements.WANDB_SWITCH, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=told):
        make_trainer(prepared_copy, NAME)


class OfflineRuns:
    """As much of the package wandb as nnU-Net uses in its mode ``offline``."""

    def __init__(self) -> None:
        self.logged: dict[str, list] = {}
        self.config: dict = {}
        self.summary: dict = {}
        self.step = 0

    def init(self, dir: str, mode: str, **options: object) -> OfflineRuns:
        assert mode == "offline"
        (Path(dir) / "wandb").mkdir(exist_ok=True)
        return self

    def log(self, values: dict, step: int) -> None:
        for name, value in values.items():
            self.logged.setdefault(name, []).append((step, value))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> OfflineRuns:
    package = OfflineRuns()
    monkeypatch.setattr(nnunet_logger, "wandb", package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    monkeypatch.setenv(requirements.WANDB_SWITCH, "1")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    return package


def test_curves_of_the_method_are_logged_to_wandb_too(prepared_copy: TinyDataset, wandb: OfflineRuns):
    trainer = make_trainer(prepared_copy, NAME)
    trainer.run_training()
    assert [step for step, _ in wandb.logged["train_losses"]] == [0]
    assert [step for step, _ in wandb.logged["confident_share"]] == [0]


def test_a_second_start_does_not_remove_the_log_of_the_run(prepared_copy: TinyDataset, wandb: OfflineRuns, monkeypatch):
    """nnU-Net removes the folder of an earlier log when a trainer is made, before any folder is locked."""
    log = Path(make_trainer(prepared_copy, NAME).output_folder) / "wandb" / "run"
    log.write_text("")

    def held_by_another_process(folder: Path) -> None:
        raise InputError(Problem("another training runs", folder, "", ""))

    monkeypatch.setattr(durable, "lock_folder", held_by_another_process)
    with pytest.raises(InputError, match="another training runs"):
        make_trainer(prepared_copy, NAME)
    assert log.exists()


def test_a_label_that_only_a_validation_case_has_is_trained_without_an_amount(prepared_copy: TinyDataset, monkeypatch):
    """Per voxel of the labeled volumes there is no amount of a class that they do not have."""
    folder, names = prepared_copy.preprocessed, [f"train_{number:02d}" for number in range(4)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:3], "val": names[3:]}]))
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"]["rare"] = 2
    (folder / "dataset.json").write_text(json.dumps(description))
    give_label(folder / "nnUNetPlans_2d", names[3], 2)
    trainer = make_trainer(prepared_copy, NAME, fold=0)
    monkeypatch.setattr(trainer, "perform_actual_validation", lambda *_: None)
    trainer.run_training()
    assert "amount_blob" in trainer.curves
    assert "amount_rare" not in trainer.curves
    assert np.isfinite(trainer.logger.get_value("val_losses", step=-1))
    assert len(trainer.logger.get_value("dice_per_class_or_region", step=-1)) == 2


def test_a_label_that_dataset_json_does_not_name_is_told(prepared_copy: TinyDataset):
    """On a GPU the loss would end with "device-side assert triggered"."""
    give_label(prepared_copy.preprocessed / "nnUNetPlans_2d", "train_02", 7)
    with pytest.raises(InputError, match=r"label not in dataset.json in train_02: 7; known: 0, 1"):
        make_trainer(prepared_copy, NAME).on_train_start()


def give_label(folder: Path, case: str, label: int) -> None:
    """Give some voxels of the preprocessed ``case`` another label."""
    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    data, seg = np.asarray(data[:]), np.array(seg[:])
    seg[:, :, 4:8, 4:8] = label
    save_case(data, seg, properties, folder / case, [16, 16])
