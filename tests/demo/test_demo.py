from __future__ import annotations

import sys
from pathlib import Path

import command_server
import pytest
from matplotlib.image import imread

from nnunetv2_crossmatch.cli.demo import main, prepare_folder
from nnunetv2_crossmatch.demo import run
from nnunetv2_crossmatch.demo.run import FULL_SIZE, PLANS, format_score_table, reduce_plans, select_cases
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.methods.crossmatch import CrossMatchSettings
from nnunetv2_crossmatch.methods.names import settings_from_name
from nnunetv2_crossmatch.training import supervised


def make_scores(dices: dict[str, float], mean: float | None) -> dict:
    cases = {case: {"left atrium": {"dice": dice}} for case, dice in dices.items()}
    means = {key: {"mean": mean} for key in ("dice", "jaccard", "hd95_mm", "asd_mm")}
    return {"cases": cases, "summary": {"left atrium": means}}


def make_plans(stages: int) -> dict:
    network = {
        "n_stages": stages,
        "features_per_stage": [32] * stages,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[2, 2, 2]] * stages,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    configuration = {"data_identifier": "nnUNetPlans_3d_fullres", "architecture": {"arch_kwargs": network}}
    return {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}


def test_both_trainers_run_the_same_number_of_steps():
    control = getattr(supervised, FULL_SIZE.trainers["supervised"])
    crossmatch = settings_from_name(FULL_SIZE.trainers["CrossMatch"])
    assert list(control.length.values()) == [crossmatch.epochs, crossmatch.iterations, crossmatch.validation_iterations]


def test_crossmatch_runs_with_its_default_settings():
    assert settings_from_name(FULL_SIZE.trainers["CrossMatch"]) == CrossMatchSettings(
        FULL_SIZE.epochs, FULL_SIZE.iterations, 2
    )


@pytest.mark.parametrize("stages", [3, 4, 6])
def test_all_lists_of_reduced_plans_have_one_length(stages: int):
    network = reduce_plans(make_plans(stages))["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    per_stage = {len(network[key]) for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")}
    assert per_stage == {network["n_stages"]} == {len(network["n_conv_per_stage_decoder"]) + 1}


def test_reduced_plans_use_the_same_preprocessed_data():
    small = reduce_plans(make_plans(4))
    assert small["plans_name"] == PLANS
    assert small["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"


def test_reducing_plans_does_not_change_the_input():
    large = make_plans(6)
    reduce_plans(large)
    assert large == make_plans(6)


def test_cases_are_selected_by_the_mean_dice_of_both_methods():
    both = {
        "a": make_scores({"x": 0.2, "y": 0.9, "z": 0.5}, 0.5),
        "b": make_scores({"x": 0.9, "y": 0.1, "z": 0.8}, 0.6),
    }
    assert select_cases(both) == {"worst": "y", "median": "x", "best": "z"}


def test_the_table_shows_a_dash_for_an_undefined_mean():
    text = format_score_table({"supervised": make_scores({"x": 0.5}, 0.5), "CrossMatch": make_scores({"x": 0.5}, None)})
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["CrossMatch"] == ["-"] * 4


def test_a_folder_with_content_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="folder not empty"):
        prepare_folder(tmp_path)


def test_the_default_folder_is_a_temporary_one():
    folder = prepare_folder(None)
    assert not any(folder.iterdir())
    folder.rmdir()


@pytest.mark.slow
def test_the_demo_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    environment = run.make_environment
    monkeypatch.setattr(run, "make_environment", lambda *given: {**environment(*given), **command_server.variables()})
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_crossmatch_demo", "--quick", "--folder", str(tmp_path / "demo")])
    main()
    assert "Dice   Jaccard   95HD mm    ASD mm\nsupervised " in capsys.readouterr().out
    assert imread(tmp_path / "demo" / "crossmatch_demo.png").shape[1] > 500
