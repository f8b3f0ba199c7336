from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import fake_data
import pytest
import trained
from real_volumes import DATA, subsampled_volumes

from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.methods.names import settings_from_name

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import protocol  # noqa: E402
import protocol_data  # noqa: E402
import protocol_request  # noqa: E402
import protocol_results  # noqa: E402
from protocol_rows import Length, Pace, Run, leaders, measuring, plan_runs  # noqa: E402
from protocol_steps import Protocol, Step, read_runs, run_steps, step_seconds, write_script  # noqa: E402

NAME = "nnUNetTrainerCrossMatch"
PACE = Pace(crossmatch=0.6, supervised=0.1)


def arguments(folder: Path, *more: str) -> list[str]:
    given = f"acdc --labeled 1 --trainer {NAME} --seeds 0 --steps 2 --data {folder}/data --folder {folder}/out"
    return [*given.split(), *more]


def request(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> protocol_request.Request:
    monkeypatch.setattr(sys, "argv", ["protocol.py", *arguments(folder, *more)])
    return protocol.read_request(protocol.parser())[0]


def planned(*trainers: str, seeds: tuple[int, ...] = (0,), steps: int = 3000, **more: object) -> dict[str, Run]:
    paces = dict.fromkeys(leaders(trainers), PACE)
    runs = plan_runs(trainers, seeds, protocol.ROWS, Length(steps, None), paces, **more)
    return {run.name: run for run in runs}


# Rows


def test_rows_have_equal_steps_or_equal_compute():
    steps = {run.row: run.steps for run in planned(NAME).values()}
    assert steps == {"supervised_steps": 3000, "supervised_compute": 18000, "crossmatch": 3000, "upper_bound": 18000}


def test_every_row_but_crossmatch_is_the_hosts_step():
    weights = {run.row: settings_from_name(run.trainer).unsupervised for run in planned(NAME).values()}
    assert weights == {"supervised_steps": 0, "supervised_compute": 0, "crossmatch": 0.5, "upper_bound": 0}


def test_only_the_upper_bound_sees_all_labels():
    assert [run.row for run in planned(NAME).values() if run.labeled_all] == ["upper_bound"]


def test_minutes_become_whole_epochs_that_fit():
    length = Length(None, 10.0)
    (run,) = plan_runs([NAME], [0], ["crossmatch"], length, dict.fromkeys(leaders([NAME]), PACE))
    settings = settings_from_name(run.trainer)
    assert (settings.epochs, settings.iterations) == (4, 250)
    assert run.seconds == pytest.approx(600)


def test_fewer_steps_than_an_epoch_make_a_short_epoch():
    settings = settings_from_name(planned(NAME, steps=7)["crossmatch_seed0"].trainer)
    assert (settings.epochs, settings.iterations) == (1, 7)


def test_trainers_that_differ_in_the_method_share_their_controls():
    runs = planned(NAME, f"{NAME}_tau0p85", seeds=(0, 1))
    assert sum(run.row == "supervised_steps" for run in runs.values()) == 2
    assert {"crossmatch_seed1", "crossmatch_tau0p85_seed1"} <= runs.keys()
    assert runs["crossmatch_tau0p85_seed1"].control == "supervised_steps_seed1"


def test_another_optimizer_has_controls_of_its_own():
    runs = planned(NAME, f"{NAME}_optadamw")
    assert "optadamw" in runs["supervised_steps_optadamw_seed0"].trainer
    assert runs["crossmatch_optadamw_seed0"].control == "supervised_steps_optadamw_seed0"


def test_every_trainer_name_is_trained_once_per_data_set():
    runs = planned(NAME, f"{NAME}_tau0p85", f"{NAME}_LA", seeds=(0, 1, 2)).values()
    assert len({(run.trainer, run.labeled_all) for run in runs}) == len(runs) == 3 * 9


def test_diagnosis_is_for_crossmatch_rows():
    diagnosed = {run.row for run in planned(NAME, diagnose=True).values() if "diagnose1" in run.trainer}
    assert diagnosed == {"crossmatch"}


def test_pace_is_measured_with_the_leader_and_its_control():
    (leader,) = leaders([f"{NAME}_tau0p85", f"{NAME}_eta0p2"]).values()
    assert measuring(leader, Length(5, None)) == {
        "crossmatch": f"{NAME}_2epochs_iters5_valiters1_tau0p85_seed0",
        "supervised": f"{NAME}_2epochs_iters5_valiters1_unsup0_seed0",
    }


# Requests and lists


def test_a_folder_belongs_to_one_request(tmp_path, monkeypatch):
    protocol_request.claim_folder(tmp_path, request(tmp_path, monkeypatch))
    protocol_request.claim_folder(tmp_path, request(tmp_path, monkeypatch))
    with pytest.raises(InputError, match=r"folder of another protocol.*small: null before, 16 now"):
        protocol_request.claim_folder(tmp_path, request(tmp_path, monkeypatch, "--small"))


def test_missing_data_leave_no_trace(tmp_path, monkeypatch):
    asked = request(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"folder missing in .*data: given with --data"):
        protocol.run_protocol(asked, tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_data_without_a_scored_case_leave_no_trace(tmp_path, monkeypatch):
    fake_data.write_acdc_h5(tmp_path / "data", ["patient038", "patient002"])
    asked = request(tmp_path, monkeypatch, "--on", "test", "--allow-missing")
    with pytest.raises(
        InputError, match=r'nothing to score in .*data: it holds none of the 20 entries of the list "test"'
    ):
        protocol.run_protocol(asked, tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_one_scored_case_is_enough(tmp_path, monkeypatch):
    fake_data.write_acdc_h5(tmp_path / "data", ["patient002"])
    asked = request(tmp_path, monkeypatch, "--allow-missing")
    protocol_request.check_data(asked, protocol_request.split_lists(asked))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--small", "--configuration", "3d_fullres"], "--small is 2d"),
        (["--trainer", NAME, f"{NAME}_seed3"], "two names differ in nothing"),
        (["--minutes", "3"], "not allowed with"),
        (["--seeds"], "expected at least one argument"),
    ],
)
def test_contradictions_end_with_usage(tmp_path, monkeypatch, capsys, more, message):
    with pytest.raises(SystemExit):
        request(tmp_path, monkeypatch, *more)
    assert message in capsys.readouterr().err


def test_la_holds_out_ten_training_cases_for_choices_and_none_for_the_test(tmp_path, monkeypatch):
    counts = {}
    for scored_on in ("val", "test"):
        given = ["protocol.py", "la", "--labeled", "8", *arguments(tmp_path, "--on", scored_on)[3:]]
        monkeypatch.setattr(sys, "argv", given)
        lists = protocol_request.split_lists(protocol.read_request(protocol.parser())[0])
        counts[scored_on] = [len(lists[role]) for role in ("labeled", "unlabeled", "val", "test")]
    assert counts == {"val": [8, 62, 10, 20], "test": [8, 72, 0, 20]}


def test_acdc_is_scored_on_its_published_validation_patients(tmp_path, monkeypatch):
    lists = protocol_request.split_lists(request(tmp_path, monkeypatch))
    assert [len(lists[role]) for role in ("labeled", "unlabeled", "val", "test")] == [1, 69, 10, 20]
    assert len(protocol_request.all_labeled(lists)["labeled"]) == 70


def test_an_empty_list_cannot_be_scored(tmp_path, monkeypatch):
    splits = fake_data.write_splits_file(tmp_path / "splits.json", train=["patient001", "patient002"])
    with pytest.raises(InputError, match=r'nothing to score.*"val" is empty'):
        protocol_request.split_lists(request(tmp_path, monkeypatch, "--splits", str(splits)))


# Steps


def counted(folder: Path, name: str, fails: bool = False) -> Step:
    return Step(name, ("sh", "-c", f"echo x >> {folder}/{name}; {'exit 1' if fails else 'true'}"))


def test_finished_steps_are_not_repeated_and_a_failed_one_is(tmp_path):
    stages = Stages(0, tmp_path, os.environ)
    with pytest.raises(InputError):
        run_steps(stages, [counted(tmp_path, "first"), counted(tmp_path, "second", fails=True)])
    run_steps(Stages(0, tmp_path, os.environ), [counted(tmp_path, "first"), counted(tmp_path, "second")])
    assert [(tmp_path / name).read_text().count("x") for name in ("first", "second")] == [1, 2]


def test_an_output_that_appears_whole_proves_its_step_done(tmp_path, capsys):
    (tmp_path / "output").touch()
    run_steps(Stages(0, tmp_path, os.environ), [Step("made", ("false",), tmp_path / "output")])
    assert "[ 1/1] done before: made" in capsys.readouterr().out


def test_a_protocol_repeats_its_commands_in_a_shell_script(tmp_path):
    script = tmp_path / "commands.sh"
    roots = {f"nnUNet_{kind}": str(tmp_path / kind) for kind in ("raw", "preprocessed", "results")}
    step = Step("say", ("sh", "-c", f"echo $COLOUR > '{tmp_path}/said'"))
    write_script(script, {**roots, "COLOUR": "light blue"}, [step])
    subprocess.run(["sh", str(script)], check=True)
    assert (tmp_path / "said").read_text() == "light blue\n"


def test_training_continues_and_prediction_takes_final_weights(tmp_path, monkeypatch):
    asked = Protocol(request(tmp_path, monkeypatch), tmp_path)
    run = planned(NAME)["crossmatch_seed0"]
    train, predict, *_ = asked.run_steps(run, None)
    assert train.command[-1] == "--c"
    assert train.output == asked.fold(run.trainer) / "checkpoint_final.pth"
    assert shlex.join(predict.command).count("-chk checkpoint_final.pth") == 1


def test_the_upper_bound_predicts_the_same_images_with_its_own_data_set(tmp_path, monkeypatch):
    asked, runs = Protocol(request(tmp_path, monkeypatch), tmp_path), planned(NAME)
    images = {asked._predict(runs[name]).command[2] for name in ("crossmatch_seed0", "upper_bound_seed0")}
    assert images == {str(tmp_path / "nnUNet_raw" / "Dataset502_ACDC" / "imagesVal")}
    assert asked.run_steps(runs["upper_bound_seed0"], None)[0].command[1] == "552"


def test_a_plan_with_known_step_times_prints_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["protocol.py", *arguments(tmp_path, "--step-seconds", "60", "20", "--plan")])
    monkeypatch.setattr(protocol.signal, "signal", lambda *_: None)
    protocol.main()
    said = capsys.readouterr().out
    assert "ratio 3.00" in said
    assert "training time of 4 runs: 0:06 h:mm" in said
    assert not (tmp_path / "out").exists()


def test_a_step_is_measured_in_the_last_epoch(tmp_path):
    """The model's last epoch took 1800 seconds, as did all."""
    trainer = f"{NAME}_3epochs_iters20"
    model = trained.write_model(tmp_path / "model", trainer)
    assert step_seconds(model / "fold_0", trainer) == 90


def test_documented_protocols_are_accepted(monkeypatch):
    page = (BENCHMARKS.parent / "docs" / "protocols.md").read_text().replace("\\\n", " ")
    lines = [line.split()[1:] for line in page.splitlines() if line.startswith("    python benchmarks/protocol.py")]
    assert len(lines) == 3
    for line in lines:
        monkeypatch.setattr(sys, "argv", line)
        assert protocol.read_request(protocol.parser())[0].dataset == "acdc"


# Plans and results


def test_small_plans_are_coarse_and_have_folders_of_their_own():
    configuration = {
        "data_identifier": "nnUNetPlans_2d", "spacing": [1.0, 1.25], "median_image_size_in_voxels": [200, 160],
        "architecture": {"arch_kwargs": {}},
    }  # fmt: skip
    plans = protocol_data.protocol_plans({"configurations": {"2d": configuration}}, "Dataset552_ACDC")
    small = plans["configurations"]["2d"]
    protocol_data.shrink(small, 2.5, 16)
    assert (small["data_identifier"], small["spacing"]) == ("nnUNetProtocolPlans_2d", [2.5, 2.5])
    assert small["median_image_size_in_voxels"] == [80, 80]
    assert small["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 128]
    assert (plans["dataset_name"], configuration["spacing"]) == ("Dataset552_ACDC", [1.0, 1.25])


def test_seeds_are_summed_up_by_mean_and_deviation():
    found = protocol_results.over_seeds([{"dice": 0.8}, {"dice": 0.9}])
    assert found["dice"] == pytest.approx({"mean": 0.85, "sd": 0.0707106781})


def test_published_rows_are_those_with_as_many_labels_and_with_all(tmp_path, monkeypatch):
    asked = request(tmp_path, monkeypatch, "--labeled", "3")
    assert {row[1] for row in protocol_results.published_table(asked).rows} == {"3", "70"}


def test_results_say_which_cases_were_used_and_which_were_missing(tmp_path, monkeypatch):
    asked = Protocol(request(tmp_path, monkeypatch), tmp_path)
    cases = {"a": "labeled", "b": "unlabeled", "c": "unlabeled", "d": "val", "e": "test"}
    record = {
        "cases": {name: {"role": role} for name, role in cases.items()},
        "missing": ["f", "g", "d (1 of 2 frames)"],
    }
    lists = {"labeled": ["a"], "unlabeled": ["b", "c", "f"], "val": ["d"], "test": ["e", "g"]}
    asked.conversion_record(False).parent.mkdir(parents=True)
    protocol_request.write_json(asked.conversion_record(False), record)
    protocol_request.write_json(asked.splits_file(False), lists)
    said = protocol_results.said_of(protocol_results.used_cases(asked))
    lacking = "2 (f, d (1 of 2 frames))"
    assert said == f"Cases: 1 labeled, 2 unlabeled, 1 val. Listed for them, but not in the data: {lacking}."


def small_acdc(folder: Path) -> list[str]:
    """Real volumes of the three published labeled patients, two unlabeled and one for validation, or generated ones."""
    if DATA.is_dir():
        patients = ("patient038", "patient050", "patient099", "patient003", "patient004", "patient002")
        files = [file for patient in patients for file in sorted((DATA / "acdc_h5").glob(f"{patient}_*.h5"))]
        every_second = slice(None, None, 2)
        subsampled_volumes(files, DATA / "acdc_h5", folder / "data", (slice(None), every_second, every_second))
        return ["--labeled", "3", "--allow-missing"]
    patients = [f"patient{number:03d}" for number in (1, 2, 3)]
    fake_data.write_acdc_h5(folder / "data", patients)
    splits = fake_data.write_splits_file(
        folder / "splits.json", train=patients[:2], val=patients[2:], labeled=patients[:1]
    )
    return ["--splits", str(splits)]


@pytest.mark.slow
def test_a_whole_protocol_on_few_volumes_is_scored_and_then_done(tmp_path, monkeypatch):
    options = ["--small", "4", "--rows", "crossmatch", "upper_bound", "--step-seconds", "1", "1"]
    given = arguments(tmp_path, *options, "--trainer", f"{NAME}_valiters1", *small_acdc(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}
    command = [sys.executable, str(BENCHMARKS / "protocol.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "out" / "results"
    content = json.loads((results / "results.json").read_text())
    rows, cases = content["rows"], content["cases"]
    assert cases["labeled"] > 0
    assert cases["unlabeled"] > 0
    assert cases["val"] == 2
    assert [rows[name]["runs"][0]["labeled_all"] for name in ("crossmatch", "upper_bound")] == [False, True]
    for row in rows.values():
        assert row["runs"][0]["steps"] == 2
        assert 0 <= row["strict"]["dice"]["mean"] <= 1
    assert {"results.md", "commands.sh", "splits.json", "step_times.json"} <= {file.name for file in results.iterdir()}
    made = {file.name for file in (results / "crossmatch_seed0").iterdir()}
    assert made >= {"scores.json", "literature", "curves.json", "progress_crossmatch.png", "report.html"}
    monkeypatch.setattr(sys, "argv", command[1:])
    asked = Protocol(protocol.read_request(protocol.parser())[0], tmp_path / "out")
    runs = [step for run in read_runs(asked.folder / "runs.json") for step in asked.run_steps(run, None)]
    assert all(step.proof(asked.folder).exists() for step in [*asked.data_steps(), *runs])
