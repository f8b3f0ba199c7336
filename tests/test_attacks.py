"""Further attempts against the commands: a stranger's crafted file, a careless call, a second process."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import SimpleITK
import torch
import trained
from batchgenerators.utilities.file_and_folder_operations import load_json
from conftest import TinyDataset, blob_case, write_volume
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from segmentation_folders import three_cases, write_dataset_json

from nnunetv2_crossmatch.cli.model_export import _check_training
from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.dataset_conversion import reading
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, read_h5
from nnunetv2_crossmatch.dataset_conversion.splits import read_splits
from nnunetv2_crossmatch.errors import InputError, Problem, install_excepthook
from nnunetv2_crossmatch.evaluation.evaluate import EvaluationOptions, evaluate_folder, evaluate_folders
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.prediction.predictor import CasePredictor
from nnunetv2_crossmatch.report.build import ReportRequest, write_report
from nnunetv2_crossmatch.report.model_record import read_model
from nnunetv2_crossmatch.training.lock import lock_folder
from nnunetv2_crossmatch.training.record import FILE, read_record
from nnunetv2_crossmatch.training.start_from import _write_run, start_from

CLAIMED = 10**5
"""Length of each axis in headers of files that hold a few bytes."""


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` where the block waits for a pipe or a device."""

    def stop(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    limit_of_the_test = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *limit_of_the_test)


# Files of strangers


def test_evaluation_does_not_call_what_a_dataset_json_names_as_its_reader(tmp_path: Path) -> None:
    """nnU-Net calls whatever its modules of readers contain: here a function that they import."""
    reference, predictions = three_cases(tmp_path)
    file = write_dataset_json(predictions)
    file.write_text(json.dumps({**json.loads(file.read_text()), "overwrite_image_reader_writer": "recursive_find"}))
    with pytest.raises(InputError, match=r"foreign name in .*overwrite_image_reader_writer is 'recursive_find'"):
        evaluate_folder(reference, predictions)


def test_a_name_cannot_move_the_cursor_or_begin_a_line() -> None:
    text = str(Problem("what", "where", "class \x1b[2K\r\nerror: all is well \ud800\u202e", "fix"))
    assert text == r"error: what in where: class \x1b[2K\r\nerror: all is well \ud800\u202e. Fix: fix"


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_header_that_claims_more_voxels_than_there_are_is_refused_before_memory_is_asked_for(
    tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"image{ending}"
    SimpleITK.WriteImage(SimpleITK.Image(2, 3, 5, SimpleITK.sitkUInt8), file, useCompression=False)
    sizes = (b"sizes: 2 3 5", b"DimSize = 2 3 5")
    content = file.read_bytes()
    for size in sizes:
        content = content.replace(size, size.replace(b"2 3 5", b" ".join([str(CLAIMED).encode()] * 3)))
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"damaged file in .*: 30 of {CLAIMED**3} bytes are there"):
        check_file_integrity(file)


def test_hdf5_that_claims_more_voxels_than_it_stores_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Without any chunk written, all voxels are a fill value."""
    with h5py.File(tmp_path / "a.h5", "w") as content:
        content.create_dataset("image", (CLAIMED,) * 3, np.uint8, chunks=(10, 10, 10))
    monkeypatch.setattr(reading.np, "asarray", lambda *_: pytest.fail("read"))
    with pytest.raises(InputError, match=rf"damaged file in .*: 0 bytes are said to hold {CLAIMED**3}"):
        read_h5(tmp_path / "a.h5", "xyz", Spacing((1, 1, 1), "given"), False)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_neither_a_pipe_nor_a_device_is_read(tmp_path: Path, kind: str) -> None:
    """An archive may hold both; the first never begins, the second never ends."""
    for name in ("a.nii.gz", "a.json"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/tty" if name.endswith("gz") else "/dev/null")
    with ends_within(5):
        with pytest.raises(InputError, match="it is a folder, a pipe or a device"):
            check_file_integrity(tmp_path / "a.nii.gz")
        with pytest.raises(InputError, match="it is a folder, a pipe or a device"):
            read_json(tmp_path / "a.json", dict, "fix")


@pytest.mark.parametrize("named", ["../names.txt", "/etc/hostname", ".."])
def test_a_splits_file_reads_no_list_of_another_folder(tmp_path: Path, named: str) -> None:
    (tmp_path / "names.txt").write_text("a\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "splits.json").write_text(json.dumps({"labeled": named}))
    with pytest.raises(InputError, match=r"list in another folder in .*splits\.json"):
        read_splits(tmp_path / "lists" / "splits.json", None, str)


def test_a_record_nested_so_deep_that_comparing_it_would_fail_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"seed": 1, "versions": {}, "made_of": ' + '{"a":' * 500 + "1" + "}" * 501)
    with pytest.raises(InputError, match=r"record of the run damaged in .*nested too deep"):
        read_record(tmp_path)


CHECKPOINTS = {
    "no plans": {"init_args": {}},
    "plans that are none": {"init_args": {"plans": {"configurations": {"2d": {}}}, "configuration": "2d"}},
    "another configuration": {"init_args": {"plans": trained.PLANS, "configuration": "5d"}},
    "epochs as text": {"current_epoch": "3"},
    "weights as a list": {"network_weights": [1]},
    "curves of text": {"logging": {"train_losses": ["a"]}},
    "curves as text": {"logging": {"train_losses": 5}},
    "a log as a list": {"logging": [1]},
    "times of text": {"logging": {"epoch_start_timestamps": ["x"], "epoch_end_timestamps": [1.0]}},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_crafted_checkpoint_is_named_by_the_report(tmp_path: Path, name: str) -> None:
    file = trained.write_model(tmp_path / "model") / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), **CHECKPOINTS[name]}, file)
    with pytest.raises(InputError, match=r"(checkpoint damaged|unusable checkpoint) in .*checkpoint_final\.pth"):
        read_model(tmp_path / "model")


def test_a_checkpoint_without_plans_is_named_by_the_export(tmp_path: Path) -> None:
    file = trained.write_model(tmp_path / "a__b__2d") / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), "init_args": {"plans": 3, "configuration": "2d"}}, file)
    with pytest.raises(InputError, match=r"checkpoint damaged in .*plans"):
        _check_training(tmp_path / "a__b__2d", {}, {}, [file])


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    trainer = SimpleNamespace(initialize=lambda: None, bare_network=torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"weights of another network in .*model\.pth: Missing key"):
        _write_run(trainer, tmp_path / "model.pth", {"network_weights": {"w": torch.ones(1)}})


# Damaged data


def predictor(found: list) -> CasePredictor:
    """One whose network is never asked."""
    plans = SimpleNamespace(
        image_reader_writer_class=SimpleITKIO,
        original_median_spacing_after_transp=[1.5, 1, 1],
        transpose_backward=[0, 1, 2],
    )
    made = CasePredictor.__new__(CasePredictor)
    made.reader = SimpleITKIO()
    made.predictor = SimpleNamespace(
        plans_manager=plans,
        configuration_manager=SimpleNamespace(normalization_schemes=["x"]),
        dataset_json={},
        predict_single_npy_array=lambda *arguments: (found.append(1), None),
    )
    return made


@pytest.mark.parametrize("kind", ["cut off", "constant", "two channels"])
def test_no_label_is_predicted_for_an_image_that_cannot_be_right(tmp_path: Path, kind: str) -> None:
    """Half an image is zeros for SimpleITK, and its predicted label would be trained with."""
    file, found = tmp_path / "a_0000.nii.gz", []
    image = blob_case(0)[0]
    if kind == "constant":
        image[:] = 5
    write_volume(image, file)
    if kind == "cut off":
        file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"(damaged file|empty image|wrong number of channels) in .*a_0000"):
        predictor(found).predict([file, file] if kind == "two channels" else [file])
    assert not found


# Careless calls


def test_a_folder_is_not_scored_against_itself(tmp_path: Path) -> None:
    """Every score would be 1."""
    reference, predictions = three_cases(tmp_path)
    (tmp_path / "link").symlink_to(reference)
    for folders in ([reference], [tmp_path / "link"], [predictions, predictions]):
        with pytest.raises(InputError, match="folder compared with itself"):
            evaluate_folders(reference, folders, None, EvaluationOptions(processes=1))


def test_a_report_replaces_no_file_that_is_none(tmp_path: Path) -> None:
    reference, predictions = three_cases(tmp_path)
    before = (reference / "a.nii.gz").read_bytes()
    request = ReportRequest(reference, predictions, EvaluationOptions(processes=1), pictures=0, surfaces=0)
    with pytest.raises(InputError, match=r"report not written in .*a\.nii\.gz: a file that is no report would be"):
        write_report(request, reference / "a.nii.gz")
    assert (reference / "a.nii.gz").read_bytes() == before
    for _ in range(2):
        write_report(request, tmp_path / "report.html")


def test_a_run_is_not_begun_in_a_folder_where_another_process_trains(tmp_path: Path, monkeypatch) -> None:
    """Before its first checkpoint the folder of a training looks free."""
    training = lock_folder(tmp_path)
    module = "nnunetv2_crossmatch.training.start_from"
    monkeypatch.setattr(f"{module}.load_checkpoint", lambda file: {"init_args": {}})
    monkeypatch.setattr(f"{module}.trained_with", lambda *_: {}, raising=False)
    monkeypatch.setattr(f"{module}._model_problems", lambda *_: [])

    def locked() -> None:
        raise InputError(Problem("another training runs", tmp_path, "", ""))

    asked = SimpleNamespace(folder=tmp_path, lock_folder=locked, initialize=lambda: pytest.fail("written"))
    with pytest.raises(InputError, match="another training runs"):
        start_from(asked, tmp_path / "model.pth")
    training.release()


# Through the commands


@pytest.mark.parametrize("content", [None, b"", b"[" * 100_000, b"\xff", "\ufeff{}".encode()])
def test_what_the_host_cannot_read_as_json_is_told_in_one_line(tmp_path: Path, content, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *_: pytest.fail("traceback"))
    install_excepthook()
    if content is not None:
        (tmp_path / "plans.json").write_bytes(content)
    with pytest.raises((ValueError, RecursionError, FileNotFoundError)) as raised:
        load_json(str(tmp_path / "plans.json"))
    with pytest.raises(SystemExit, match="2"):
        sys.excepthook(raised.type, raised.value, raised.tb)
    assert re.fullmatch(r"error: (unusable JSON|file not read) in .*plans\.json: .*\n", capsys.readouterr().err)


def test_the_hosts_training_command_names_a_broken_json_file(empty_folders: TinyDataset) -> None:
    folder = empty_folders.root / "preprocessed" / "Dataset998_Tiny"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text("{")
    train = ("nnUNetv2_train", "998", "2d", "all", "-tr", "nnUNetTrainerCrossMatch", "-device", "cpu")
    ended = empty_folders.run(*train, check=False)
    assert ended.returncode == 2
    assert re.search(
        r"^error: unusable JSON in .*nnUNetPlans\.json: Expecting property name", ended.stderr, re.MULTILINE
    )
    assert "Traceback" not in ended.stderr
    assert [path.name for path in folder.iterdir()] == ["nnUNetPlans.json"]


def test_the_evaluation_command_names_a_broken_json_file(empty_folders: TinyDataset, tmp_path: Path) -> None:
    reference, predictions = three_cases(tmp_path)
    (reference.parent / "dataset.json").write_text('{"labels": {"background": 0, "background": 0}}')
    before = sorted(predictions.iterdir())
    ended = empty_folders.run("nnUNetv2_crossmatch_evaluate", "-r", str(reference), "-p", str(predictions), check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "dataset.json: background is given twice" in ended.stderr
    assert sorted(predictions.iterdir()) == before
