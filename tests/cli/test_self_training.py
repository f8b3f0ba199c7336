"""Self-training by one command: what its second training learns from, and that nothing is done twice."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from conftest import TinyDataset

from nnunetv2_crossmatch.cli import self_training
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.prediction.second_training import half_labeled, prepare_second_training

LENGTH = "1epochs_iters2_valiters1"
FIRST, SECOND = f"nnUNetTrainer_{LENGTH}", f"nnUNetTrainerCrossMatch_{LENGTH}_unsup0_lr0p003"
COMMAND = (
    "nnUNetv2_crossmatch_self_training", "998", "2d", "all", "-o", "911", "-tr", FIRST, "--student", SECOND,
    "--start_from_first",
)  # fmt: skip


@pytest.mark.parametrize(("labeled", "predicted"), [(1, 1), (2, 5), (4, 6), (7, 3)])
def test_half_of_the_draws_are_labeled_and_all_cases_of_a_kind_are_equally_likely(labeled, predicted):
    names = [f"l{i}" for i in range(labeled)], [f"p{i}" for i in range(predicted)]
    counts = Counter(half_labeled(*names))
    assert {*counts} == {*names[0], *names[1]}
    assert len({counts[name] for name in names[0]}) == len({counts[name] for name in names[1]}) == 1
    assert sum(counts[name] for name in names[0]) == sum(counts[name] for name in names[1])


def test_folds_of_the_first_training_keep_their_validation_cases(tiny_copy: TinyDataset):
    folds = [{"train": ["train_00", "train_01"], "val": ["train_02", "train_03"]}]
    (tiny_copy.preprocessed / "splits_final.json").write_text(json.dumps(folds))
    target = tiny_copy.raw.with_name("Dataset911_Both")
    (target / "imagesTr").mkdir(parents=True)
    for name in ("train_00", "train_01", "train_02", "train_03", "free_04"):
        (target / "imagesTr" / f"{name}_0000.nii.gz").touch()
    (target / "dataset.json").write_text((tiny_copy.raw / "dataset.json").read_text())
    file = prepare_second_training(tiny_copy.name, target.name, "nnUNetPlans", "0")
    expected = ["free_04", "free_04", "train_00", "train_01"]
    assert json.loads(file.read_text()) == [{"train": expected, "val": ["train_02", "train_03"]}]
    assert json.loads((file.parent / "nnUNetPlans.json").read_text())["dataset_name"] == target.name
    everything = json.loads(prepare_second_training(tiny_copy.name, target.name, "nnUNetPlans", "all").read_text())
    assert len(everything) == 1
    assert set(everything[0]["train"]) == {"free_04", "train_00", "train_01", "train_02", "train_03"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "911", "--student", "nnUNetTrainerCrossMatch_tua0p5"), "bad token in trainer name"),
        (("-o", "911", "--student", "nnUNetTrainer", "--start_from_first"), "unknown trainer"),
        (
            ("-o", "911", "--student", "nnUNetTrainer_250epohcs"),
            r"unknown trainer in trainer name \S+_250epohcs: Could",
        ),
        (("-o", "911", "--student", "nnUNetTrainerFixMatch"), r"no unlabeled images in trainer name \S+FixMatch: all"),
        (("-o", "998"), "data set id taken"),
        (("-o", "911"), "no unlabeled images"),
    ],
)
def test_what_the_second_training_would_fail_of_is_told_before_the_first(tiny_copy, monkeypatch, options, message):
    if message == "no unlabeled images":
        shutil.rmtree(tiny_copy.raw / "imagesUn")
    monkeypatch.setattr(self_training.Stages, "run", lambda *_, **__: pytest.fail("something is trained"))
    monkeypatch.setattr(sys, "argv", ["self_training", "998", "2d", "all", *options])
    with pytest.raises(InputError, match=message):
        self_training.main.__wrapped__()


@pytest.mark.parametrize(
    ("first", "options", "second"),
    [
        ("nnUNetTrainer_250epochs", (), "nnUNetTrainer_250epochs"),
        ("nnUNetTrainerFixMatch_geometry1", (), "nnUNetTrainer"),
        ("nnUNetTrainer_250epochs", ("--start_from_first",), "nnUNetTrainerCrossMatch_unsup0_lr0p003"),
        ("nnUNetTrainer", ("--student", "nnUNetTrainer_5epochs"), "nnUNetTrainer_5epochs"),
    ],
)
def test_the_second_training_is_like_the_first_or_as_told(tiny_copy, monkeypatch, first, options, second):
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(self_training, "check_student", lambda *_: None)
    monkeypatch.setattr(self_training, "run", lambda _, part: ran.append(part.command))
    monkeypatch.setattr(sys, "argv", ["self_training", "998", "2d", "all", "-o", "911", "-tr", first, *options])
    self_training.main.__wrapped__()
    trained = [command[command.index("-tr") + 1] for command in ran if command and command[0] == "nnUNetv2_train"]
    assert trained == [first, second]
    started = [command for command in ran if command and command[0] == "nnUNetv2_crossmatch_start_from"]
    assert len(started) == ("--start_from_first" in options)


def test_a_command_that_leaves_nothing_is_an_error_and_no_file_is_made_in_its_place(tmp_path):
    stages = SimpleNamespace(folder=tmp_path / "logs", run=lambda *_: None)
    part = self_training.Part(tmp_path / "checkpoint_final.pth", ("nnUNetv2_train", "998"))
    with pytest.raises(InputError, match=r"nothing written in .*checkpoint_final\.pth: nnUNetv2_train 998 ended"):
        self_training.run(stages, part)
    assert not part.proof.exists()


def test_the_command_trains_twice_and_does_nothing_again(tiny_copy: TinyDataset):
    first = tiny_copy.run(*COMMAND, "-device", "cpu").stdout
    model = tiny_copy.results.with_name("Dataset911_TinySelfTrainingall") / f"{SECOND}__nnUNetPlans__2d"
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()
    assert f"Model: {model}" in first
    record = json.loads((model / "fold_0" / "crossmatch_started_from.json").read_text())
    assert record["checkpoint"].endswith(f"{FIRST}__nnUNetPlans__2d/fold_all/checkpoint_final.pth")
    again = tiny_copy.run(*COMMAND, "-device", "cpu").stdout
    assert again.count("done before") == 6
    refused = tiny_copy.run(*COMMAND, "-device", "cpu", "--keep", "0.5", check=False)
    assert refused.returncode == 2
    assert "predictions of another model" in refused.stderr
