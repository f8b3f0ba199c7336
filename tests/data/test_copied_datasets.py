"""Data sets whose folders or plans were copied: no command changes the files of the original."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TinyDataset
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.run.run_training import get_trainer_from_args

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.cli.environment_checks import WRONG, check_dataset
from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled
from nnunetv2_crossmatch.errors import InputError

COPY = "Dataset997_Copy"
TRAINER = "nnUNetTrainerCrossMatch_1epochs_iters1"


def files(folder: Path) -> dict[str, int]:
    """Inodes of all files below ``folder``: a file that was written again has another one."""
    return {str(file.relative_to(folder)): file.stat().st_ino for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def original(prepared_copy: TinyDataset) -> TinyDataset:
    """A preprocessed data set, and a copy of its two folders under another id with one unlabeled image less."""
    for folder in (prepared_copy.raw, prepared_copy.preprocessed):
        shutil.copytree(folder, folder.with_name(COPY))
    (prepared_copy.raw.with_name(COPY) / "imagesUn" / "free_06_0000.nii.gz").unlink()
    return prepared_copy


def plans_of_copy(original: TinyDataset) -> Path:
    return original.preprocessed.with_name(COPY) / "nnUNetPlans.json"


def test_preprocessing_a_copied_dataset_changes_no_file_of_the_original(original: TinyDataset) -> None:
    before = files(original.preprocessed)
    with pytest.raises(InputError) as caught:
        preprocess_unlabeled(COPY, "nnUNetPlans", ["2d"], 1)
    assert files(original.preprocessed) == before
    assert f"plans of another data set in {plans_of_copy(original)}" in str(caught.value)
    assert f'"dataset_name" is {original.name}' in str(caught.value)
    assert f'Fix: set "dataset_name" to "{COPY}"' in str(caught.value)


def test_training_a_copied_dataset_is_refused(original: TinyDataset) -> None:
    before = files(original.root)
    with pytest.raises(InputError, match=rf"plans of another data set.*{COPY}"):
        get_trainer_from_args("997", "2d", "all", TRAINER, device=torch.device("cpu"))
    assert files(original.root) == before


def test_the_check_command_reports_a_copied_dataset(original: TinyDataset) -> None:
    assert [(finding.state, finding.what) for finding in check_dataset("997", [], "nnUNetPlans")] == [
        (WRONG, "plans of another data set")
    ]


def test_a_copied_dataset_with_corrected_plans_is_preprocessed(original: TinyDataset) -> None:
    before, file = files(original.preprocessed), plans_of_copy(original)
    file.write_text(json.dumps({**json.loads(file.read_text()), "dataset_name": COPY}))
    preprocess_unlabeled(COPY, "nnUNetPlans", ["2d"], 1)
    assert files(original.preprocessed) == before
    assert not (file.parent / "nnUNetPlans_2d_unlabeled" / "free_06.b2nd").exists()


def test_moved_plans_name_the_target_dataset(original: TinyDataset) -> None:
    """nnU-Net's command for moving plans writes the name of the target data set."""
    move_plans_between_datasets(original.name, COPY, "nnUNetPlans", "movedPlans")
    preprocess_unlabeled(COPY, "movedPlans", ["2d"], 1)
    assert (original.preprocessed.with_name(COPY) / "movedPlans_2d_unlabeled" / "free_07.b2nd").is_file()


@pytest.mark.parametrize("identifier", ["../Dataset998_Tiny/nnUNetPlans_2d", "/nnUNetPlans_2d"])
def test_a_data_identifier_with_a_path_is_refused(prepared_copy: TinyDataset, identifier: str) -> None:
    plans = json.loads(prepared_copy.plans_file.read_text())
    plans["configurations"]["2d"]["data_identifier"] = identifier
    prepared_copy.plans_file.write_text(json.dumps(plans))
    with pytest.raises(InputError, match=r"no plain name .* data_identifier is"):
        preprocess_unlabeled(prepared_copy.name, "nnUNetPlans", ["2d"], 1)


def test_an_unlabeled_folder_linked_to_another_dataset_is_refused(original: TinyDataset) -> None:
    file = plans_of_copy(original)
    file.write_text(json.dumps({**json.loads(file.read_text()), "dataset_name": COPY}))
    shutil.rmtree(file.parent / "nnUNetPlans_2d_unlabeled")
    (file.parent / "nnUNetPlans_2d_unlabeled").symlink_to(original.preprocessed / "nnUNetPlans_2d_unlabeled")
    before = files(original.preprocessed)
    told = r"folder of another data set in \S*/nnUNetPlans_2d_unlabeled: it is a link to .*a folder of another data set"
    with pytest.raises(InputError, match=told):
        preprocess_unlabeled(COPY, "nnUNetPlans", ["2d"], 1)
    assert files(original.preprocessed) == before


@pytest.mark.parametrize("name", ["..", "Dataset998_Tiny/../Dataset998_Tiny", "Dataset998_Tiny/imagesUn"])
def test_a_path_is_no_name_of_a_dataset(tiny_copy: TinyDataset, name: str) -> None:
    with pytest.raises(InputError, match="data set missing"):
        folders.dataset_name(name)
