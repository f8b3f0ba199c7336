"""``nnUNetv2_crossmatch_check -tr``: what the trainer refuses of its name, its settings, plans, folds and machine."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import TinyDataset
from nnunetv2.run.run_training import get_trainer_from_args

from nnunetv2_crossmatch.cli import check, environment_checks
from nnunetv2_crossmatch.cli.environment_checks import OK, WRONG, check_dataset, check_trainer_name
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.training.requirements import WANDB_SWITCH

TRAINER = "nnUNetTrainerCrossMatch_1epochs"
CASES = [f"train_{number:02d}" for number in range(4)]


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def patch_of_17(tiny: TinyDataset, _: pytest.MonkeyPatch) -> None:
    edit(tiny.plans_file, lambda plans: plans["configurations"]["2d"].update(patch_size=[17, 16]))


def split(tiny: TinyDataset, training: list[str], validation: list[str]) -> None:
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": training, "val": validation}]))


def unknown_case(tiny: TinyDataset, _: pytest.MonkeyPatch) -> None:
    split(tiny, [*CASES[:3], "train_17"], CASES[3:])


def no_validation(tiny: TinyDataset, _: pytest.MonkeyPatch) -> None:
    split(tiny, CASES, [])


def half_case(tiny: TinyDataset, _: pytest.MonkeyPatch) -> None:
    split(tiny, CASES[:3], CASES[3:])
    (tiny.preprocessed / "nnUNetPlans_2d" / f"{CASES[1]}_seg.b2nd").unlink()


def names_by_number(tiny: TinyDataset, _: pytest.MonkeyPatch) -> None:
    edit(tiny.preprocessed / "dataset.json", lambda content: content.update(labels={"0": "background", "1": "blob"}))


def no_wandb(tiny: TinyDataset, patch: pytest.MonkeyPatch) -> None:
    patch.setenv(WANDB_SWITCH, "maybe")


def read_only_results(tiny: TinyDataset, patch: pytest.MonkeyPatch) -> None:
    make = tempfile.TemporaryFile

    def refuse(dir: Path):
        if Path(dir).is_relative_to(tiny.results):
            raise PermissionError(13, "Permission denied")
        return make(dir=dir)

    tiny.results.mkdir()
    patch.setattr(tempfile, "TemporaryFile", refuse)


def contradiction(tiny: TinyDataset, _: pytest.MonkeyPatch) -> str:
    return f"{TRAINER}_joint1_execsequential"


SPOILED = [
    contradiction,
    patch_of_17,
    unknown_case,
    no_validation,
    half_case,
    names_by_number,
    no_wandb,
    read_only_results,
]


def run_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_crossmatch_check", *arguments])
    with pytest.raises(SystemExit) as ended:
        check.main()
    return int(ended.value.code), capsys.readouterr().out


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_the_trainer_refuses_the_check_tells_in_the_same_words(prepared_copy, monkeypatch, capsys, spoil):
    split(prepared_copy, CASES[:3], CASES[3:])
    trainer = spoil(prepared_copy, monkeypatch) or TRAINER
    with pytest.raises(InputError) as caught:
        get_trainer_from_args("998", "2d", 0, trainer, device=torch.device("cpu")).on_train_start()
    code, output = run_check(monkeypatch, capsys, "-d", "998", "-c", "2d", "-tr", trainer)
    assert code == 2, output
    for problem in caught.value.problems:
        assert problem.detail in output
        assert problem.fix in output


def test_a_good_run_passes(prepared_copy: TinyDataset, monkeypatch, capsys):
    code, output = run_check(monkeypatch, capsys, "-d", "998", "-c", "2d", "3d_fullres", "-tr", TRAINER)
    assert code == 0, output
    assert f"trainer: {TRAINER}" in output


NAMES = {
    TRAINER: OK,
    "nnUNetTrainer": OK,
    "nnUNetTrainer_3epochs": OK,
    "nnUNetTrainerCrossMatch_lr1_lr2": WRONG,
    "nnUNetTrainerCrossMatch_speed9": WRONG,
    "nnUNetTrainerNobody": WRONG,
    "Other": WRONG,
}


@pytest.mark.parametrize(("name", "state"), NAMES.items())
def test_the_name_is_read_as_the_trainer_reads_it(name: str, state: str, tiny_copy: TinyDataset):
    assert check_trainer_name(name).state == state


def test_too_little_shared_memory_for_the_batches_is_wrong(prepared_copy: TinyDataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    usage = type("Usage", (), {"free": 10_000, "total": 0, "used": 0})
    monkeypatch.setattr(environment_checks.shutil, "disk_usage", lambda _: usage)
    results = {result.what: result for result in check_dataset("998", ["2d"], "nnUNetPlans", TRAINER)}
    assert results["shared memory, 2d"].state == WRONG


def test_the_network_is_made_without_memory_for_it(prepared_copy: TinyDataset, monkeypatch):
    """A network that does not fit this machine can be checked on it."""
    edit(
        prepared_copy.plans_file,
        lambda plans: plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(
            features_per_stage=[8, 16, 2**20]
        ),
    )
    results = [result for result in check_dataset("998", ["2d"], "nnUNetPlans", TRAINER) if result.state == WRONG]
    assert results == []
