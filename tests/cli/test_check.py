from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import TinyDataset
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from trainers import started

from nnunetv2_crossmatch.cli import check, environment_checks
from nnunetv2_crossmatch.cli.environment_checks import NOTE, OK, WRONG, CheckResult
from nnunetv2_crossmatch.errors import InputError

TRAINER = "nnUNetTrainerCrossMatch"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process; returns exit code and output."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_crossmatch_check", *arguments])
        with pytest.raises(SystemExit) as ended:
            check.main()
        return int(ended.value.code), capsys.readouterr().out

    return call


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


def by_name(results: object) -> dict[str, CheckResult]:
    return {result.what: result for result in results}  # type: ignore[attr-defined]


def test_a_preprocessed_data_set_passes_all_checks(prepared_copy: TinyDataset, run_check):
    code, output = run_check("-d", str(prepared_copy.id))
    assert code == 0, output
    assert "unlabeled cases, 3d_fullres: 4" in output


@pytest.mark.parametrize("variable", environment_checks.FOLDER_VARIABLES)
def test_an_unset_variable_is_reported_once_with_its_export_line(variable: str, prepared_copy, run_check, monkeypatch):
    monkeypatch.delenv(variable)
    code, output = run_check("-d", str(prepared_copy.id))
    assert code == 2
    assert output.count(f'fix: export {variable}="/path/to/your/{variable}"') == 1


@pytest.mark.parametrize("value", ["", "/elsewhere"])
def test_a_wrong_trainers_folder_is_reported_with_its_export_line(value: str, tiny_copy, run_check, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", value)
    code, output = run_check()
    assert code == 2
    assert 'fix: export nnUNet_extTrainer="$(nnUNetv2_crossmatch_trainers)"' in output


def test_the_trainers_folder_may_be_one_of_several(tiny_copy, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", f"/elsewhere{os.pathsep}{os.environ['nnUNet_extTrainer']}")
    assert environment_checks.check_trainers_folder().state == OK


def test_torch_2_9_is_wrong(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    assert by_name(environment_checks.check_versions())["torch"].fix == 'pip install "torch!=2.9.*"'


def test_another_nnunet_version_is_wrong(monkeypatch):
    monkeypatch.setattr(environment_checks, "version", lambda name: "2.7.0")
    assert by_name(environment_checks.check_versions())["nnU-Net"].state == WRONG


def test_a_missing_gpu_is_a_note(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [result.state for result in environment_checks.check_device()] == [NOTE]


def test_compiling_without_compiler_is_wrong(gpu, monkeypatch):
    monkeypatch.delenv("nnUNet_compile", raising=False)
    monkeypatch.setattr(environment_checks.shutil, "which", lambda name: None)
    result = by_name(environment_checks.check_device())["torch.compile"]
    assert (result.state, result.fix) == (WRONG, "install it, or export nnUNet_compile=f")
    assert "a C compiler" in result.detail


def test_compiling_without_the_headers_of_python_is_wrong(gpu, monkeypatch, tmp_path):
    monkeypatch.delenv("nnUNet_compile", raising=False)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    result = by_name(environment_checks.check_device())["torch.compile"]
    assert result.state == WRONG
    assert f"{tmp_path}/Python.h" in result.detail


def test_no_compiler_is_needed_without_torch_compile(gpu, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setattr(environment_checks.shutil, "which", lambda name: None)
    assert by_name(environment_checks.check_device())["torch.compile"].state == OK


@pytest.mark.parametrize(("free", "state"), [(100, OK), (5, NOTE), (0.2, WRONG)])
def test_the_state_depends_on_free_disk_space(free: float, state: str, tiny_copy, monkeypatch):
    monkeypatch.setattr(
        environment_checks.shutil, "disk_usage", lambda path: Usage(0, 0, free * environment_checks.GIB)
    )
    assert by_name(environment_checks.check_data_folders())["disk of nnUNet_results"].state == state


@pytest.mark.parametrize(("workers", "state"), [("2", WRONG), ("0", OK)])
def test_little_shared_memory_is_wrong_if_workers_are_used(workers: str, state: str, monkeypatch):
    monkeypatch.setattr(environment_checks.shutil, "disk_usage", lambda path: Usage(0, 0, 64 * 1024**2))
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    assert by_name(environment_checks.check_workers())["shared memory"].state == state


def test_shared_memory_is_compared_with_what_the_loaders_of_the_configuration_keep_ready(tiny_prepared, monkeypatch):
    """12 workers, patches of 128^3, 2 + 2 samples: a GiB would end in a bus error, but passes without a data set."""
    plans = json.loads(tiny_prepared.plans_file.read_text())
    plans["configurations"]["3d_fullres"].update(patch_size=[128] * 3, batch_size=2)
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)  # nnU-Net starts no more workers than there are
    states = {}
    for gib in (1, 4):
        usage = Usage(0, 0, gib * environment_checks.GIB)
        monkeypatch.setattr(environment_checks.shutil, "disk_usage", lambda path, usage=usage: usage)
        check = environment_checks._check_loaders(PlansManager(plans), "3d_fullres", tiny_prepared.preprocessed, None)
        states[gib] = by_name(check)["shared memory, 3d_fullres"].state
        assert by_name(environment_checks.check_workers())["shared memory"].state == OK
    assert states == {1: WRONG, 4: OK}


@pytest.mark.parametrize(("variable", "state"), [("nnUNet_results", WRONG), ("nnUNet_raw", NOTE)])
def test_a_read_only_folder_is_wrong_if_training_writes_to_it(variable: str, state: str, tiny_copy, monkeypatch):
    def refused(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert by_name(environment_checks.check_data_folders())[variable].state == state


def test_an_unknown_data_set_is_wrong(tiny_copy, run_check):
    code, output = run_check("-d", "777")
    assert code == 2
    assert "id 777 is carried by no folder" in output


def test_missing_plans_are_wrong(tiny_copy: TinyDataset, run_check):
    code, output = run_check("-d", str(tiny_copy.id), "-p", "otherPlans")
    assert code == 2
    assert f"fix: nnUNetv2_plan_and_preprocess -d {tiny_copy.id}" in output


def test_an_unknown_configuration_is_wrong(prepared_copy: TinyDataset, run_check):
    code, output = run_check("-d", str(prepared_copy.id), "-c", "4d")
    assert code == 2
    assert "configuration: 4d is not in the plans" in output


def test_unlabeled_cases_that_are_not_preprocessed_are_a_note(tiny_copy: TinyDataset, run_check):
    code, output = run_check("-d", str(tiny_copy.id), "-c", "2d")
    assert code == 0, output
    assert f"fix: nnUNetv2_crossmatch_preprocess -d {tiny_copy.name} -c 2d -p nnUNetPlans" in output


def test_misnamed_unlabeled_images_are_wrong(tiny_copy: TinyDataset, run_check):
    image = tiny_copy.raw / "imagesUn" / "free_04_0000.nii.gz"
    image.rename(image.with_name("free_04.nii.gz"))
    code, output = run_check("-d", str(tiny_copy.id), "-c", "2d")
    assert code == 2
    assert "rename it to free_04_0000.nii.gz" in output


def test_no_unlabeled_images_are_wrong(tiny_copy: TinyDataset, run_check):
    shutil.rmtree(tiny_copy.raw / "imagesUn")
    code, output = run_check("-d", str(tiny_copy.id), "-c", "2d")
    assert code == 2
    assert "put unlabeled images into it" in output


def test_too_few_labeled_cases_for_folds_are_a_note(tiny_copy: TinyDataset, run_check):
    code, output = run_check("-d", str(tiny_copy.id), "-c", "2d")
    assert code == 0
    assert " note    labeled cases, 2d: 4 are there, nnU-Net makes 5 folds" in output


def test_missing_labeled_cases_are_wrong(prepared_copy: TinyDataset, run_check):
    shutil.rmtree(prepared_copy.preprocessed / "nnUNetPlans_2d")
    code, output = run_check("-d", str(prepared_copy.id), "-c", "2d")
    assert code == 2
    assert "-c 2d -plans_name nnUNetPlans" in output


def test_changed_plans_are_wrong(prepared_copy: TinyDataset, run_check):
    plans = prepared_copy.plans_file
    plans.write_text(plans.read_text().replace("ZScoreNormalization", "NoNormalization"))
    code, output = run_check("-d", str(prepared_copy.id), "-c", "2d")
    assert code == 2
    assert "the plans have changed" in output


def labels_gone(tiny: TinyDataset) -> None:
    shutil.rmtree(tiny.preprocessed / "gt_segmentations")


def plans_of_a_copy(tiny: TinyDataset) -> None:
    change_plans(tiny, {"dataset_name": "Dataset001_Original"})


def foreign_network(tiny: TinyDataset) -> None:
    plans = json.loads(tiny.plans_file.read_text())
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "somewhere.Else"
    tiny.plans_file.write_text(json.dumps(plans))


def cascade(tiny: TinyDataset) -> None:
    plans = json.loads(tiny.plans_file.read_text())
    plans["configurations"]["2d"]["previous_stage"] = "3d_fullres"
    tiny.plans_file.write_text(json.dumps(plans))


def no_unlabeled_images(tiny: TinyDataset) -> None:
    shutil.rmtree(tiny.raw / "imagesUn")
    for file in tiny.preprocessed.glob("*_unlabeled.json"):
        file.unlink()


def leak(tiny: TinyDataset) -> None:
    shutil.copy(tiny.raw / "imagesUn" / "free_05_0000.nii.gz", tiny.raw / "imagesTs" / "late_0000.nii.gz")


def changed_plans(tiny: TinyDataset) -> None:
    tiny.plans_file.write_text(tiny.plans_file.read_text().replace("ZScoreNormalization", "NoNormalization"))


def change_plans(tiny: TinyDataset, entries: dict) -> None:
    tiny.plans_file.write_text(json.dumps({**json.loads(tiny.plans_file.read_text()), **entries}))


REFUSALS = [labels_gone, plans_of_a_copy, foreign_network, cascade, no_unlabeled_images, leak, changed_plans]


def start_training() -> None:
    trainer = get_trainer_from_args("998", "2d", "all", f"{TRAINER}_1epochs", device=torch.device("cpu"))
    trainer.on_train_start()


@pytest.mark.parametrize("spoil", REFUSALS)
def test_what_the_trainer_refuses_the_check_reports_in_the_same_words(prepared_copy: TinyDataset, run_check, spoil):
    spoil(prepared_copy)
    with pytest.raises(InputError) as caught:
        start_training()
    code, output = run_check("-d", "998", "-c", "2d")
    assert code == 2, output
    for problem in caught.value.problems:
        assert (problem.detail in output and problem.fix in output) or spoil is no_unlabeled_images


def test_missing_labels_name_the_folder_and_the_command(prepared_copy: TinyDataset):
    """The host trains to the end before its validation looks for them."""
    (prepared_copy.preprocessed / "gt_segmentations" / "train_01.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        started(prepared_copy, f"{TRAINER}_1epochs")
    folder = prepared_copy.preprocessed / "gt_segmentations"
    assert f"labels for the validation missing in {folder}: 1 of 4 cases" in str(caught.value)
    assert f"nnUNetv2_preprocess -d {prepared_copy.id} -c 2d -plans_name nnUNetPlans" in str(caught.value)


def test_the_console_command_exists(tiny_copy: TinyDataset):
    done = tiny_copy.run("nnUNetv2_crossmatch_check", "-d", str(tiny_copy.id))
    assert "training would start" in done.stdout
