from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import command_server
import fake_data
import pytest
import trained
from real_volumes import DATA, subsampled_volumes

from benchmarks.protocol import __main__ as protocol
from benchmarks.protocol import options, prepare, results, timing, with_threads
from benchmarks.protocol import request as requests
from benchmarks.protocol.rows import ROWS, Budget, Run, Times, plan_runs, trainers_to_time
from benchmarks.protocol.steps import Protocol, Step, Training, read_runs, run_steps, write_script
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.folders import write_json
from nnunetv2_crossmatch.methods.names import settings_from_name

ROOT = Path(__file__).parents[2]
NAME = "nnUNetTrainerCrossMatch"
SUPERVISED = f"{NAME}_unsup0"
SECONDS = {NAME: 0.6, SUPERVISED: 0.1}


def arguments(folder: Path, *more: str) -> list[str]:
    given = f"acdc --labeled 1 --trainer {NAME} --seeds 0 --steps 2 --data {folder}/data --folder {folder}/out"
    return [*given.split(), *more]


def parsed(folder: Path, *more: str) -> tuple[requests.Request, argparse.Namespace]:
    return options.read_request(options.parser(), arguments(folder, *more))


def request(folder: Path, *more: str) -> requests.Request:
    return parsed(folder, *more)[0]


def planned(
    *trainers: str, seeds: tuple[int, ...] = (0,), steps: int = 3000, prediction: float = 60.0, **more: object
) -> dict[str, Run]:
    seconds = {name: SECONDS.get(name, 0.3) for name in trainers_to_time(trainers, ROWS)}
    runs = plan_runs(trainers, seeds, ROWS, Budget(steps, None), Times(seconds, prediction), **more)
    return {run.name: run for run in runs}


def length(trainer: str) -> tuple[int, int]:
    settings = settings_from_name(trainer)
    return settings.epochs, settings.iterations


# Rows


def test_every_row_takes_the_time_of_the_default_or_its_steps():
    steps = {run.row: run.steps for run in planned(NAME).values()}
    halves = 9000 + 8400  # the prediction takes as long as 600 supervised steps
    assert steps == {
        "supervised_steps": 3000, "supervised_compute": 18000, "self_training": halves,
        "self_training_weighted": halves, "self_training_continued": halves,
        "self_training_crossmatch": 1500 + 8400, "crossmatch": 3000, "upper_bound": 18000,
    }  # fmt: skip


def test_all_trainings_have_as_many_epochs_so_that_all_end_at_one_learning_rate():
    runs = planned(NAME, f"{NAME}_students2").values()
    trainers = [*(run.trainer for run in runs), *(run.teacher for run in runs if run.teacher)]
    assert {length(trainer)[0] for trainer in trainers} == {12}
    assert len({length(trainer)[1] for trainer in trainers}) == 6


def test_a_cheaper_trainer_has_more_steps_in_as_much_time():
    runs = planned(NAME, f"{NAME}_students2")
    assert runs["crossmatch_students2_seed0"].steps == 2 * runs["crossmatch_seed0"].steps
    assert len({runs[f"crossmatch{variant}_seed0"].seconds for variant in ("", "_students2")}) == 1


def test_steps_on_labeled_images_alone_take_the_time_of_the_control():
    """Half of 0.1 s and half of 0.6 s: 0.35 s on the average."""
    runs = planned(NAME, f"{NAME}_labeledonly0p5_warmup0")
    assert runs["crossmatch_warmup0_labeledonly0p5_seed0"].steps == pytest.approx(3000 * 0.6 / 0.35, abs=12)
    assert trainers_to_time([f"{NAME}_labeledonly0p5"], ROWS) == [NAME, SUPERVISED]


def test_what_was_planned_before_keeps_its_length_and_number():
    before = planned(NAME, seeds=(1,))
    seconds = {NAME: 0.6, SUPERVISED: 0.2}
    again = plan_runs([NAME], [0, 1], ROWS, Budget(3000, None), Times(seconds, 60), planned=list(before.values()))
    later = {run.name: run for run in again}
    assert all(later[name] == run for name, run in before.items())
    assert later["supervised_compute_seed0"].steps == 9000
    assert {run.predicted for run in before.values() if run.teacher} == {1, 2}
    assert {run.predicted for run in again if run.teacher} == {1, 2, 3, 4}
    assert later["self_training_seed0"].predicted == 3


def test_every_row_but_crossmatch_is_the_hosts_step():
    weights = {run.row: settings_from_name(run.trainer).unsupervised for run in planned(NAME).values()}
    assert {row for row, weight in weights.items() if weight} == {"crossmatch"}


def test_only_the_upper_bound_sees_all_labels():
    assert [run.row for run in planned(NAME).values() if run.labeled_all] == ["upper_bound"]


def test_the_student_of_self_training_has_a_seed_of_its_own():
    run = planned(NAME, seeds=(1,))["self_training_seed1"]
    assert [settings_from_name(one).seed for one in (run.teacher, run.trainer)] == [1, 1001]


def test_both_kinds_of_self_training_share_teacher_and_predictions():
    runs = planned(NAME, seeds=(0, 1))
    plain, weighted = runs["self_training_seed1"], runs["self_training_weighted_seed1"]
    assert (plain.teacher, plain.predicted) == (weighted.teacher, weighted.predicted)
    assert (plain.fold, weighted.fold) == ("0", "1")
    assert plain.predicted != runs["self_training_seed0"].predicted


def test_a_semi_supervised_trainer_can_be_the_first_of_self_training():
    trainer = "nnUNetTrainerFixMatch_geometry1_labeledonly0p25"
    run = planned(trainer, diagnose=True)["self_training_fixmatch_labeledonly0p25_geometry1_seed0"]
    teacher, student = settings_from_name(run.teacher), settings_from_name(run.trainer)
    assert (teacher.trainer, teacher.geometry, teacher.diagnose, student.unsupervised) == (
        "nnUNetTrainerFixMatch", 1.0, 1, 0.0
    )  # fmt: skip
    mean = 0.25 * 0.1 + 0.75 * 0.3  # seconds of a step
    assert teacher.epochs * teacher.iterations == pytest.approx(900 / mean, abs=12)
    assert run.seconds == pytest.approx(1800, abs=12 * mean)
    assert run.fold == "1"


def test_minutes_become_whole_epochs_that_fit():
    times = Times(SECONDS)
    (run,) = plan_runs([NAME], [0], ["semi_supervised"], Budget(None, 10.0), times)
    assert length(run.trainer) == (12, 83)
    assert run.seconds == pytest.approx(12 * 83 * 0.6)


@pytest.mark.parametrize(("steps", "expected"), [(7, (1, 7)), (50, (5, 10)), (500, (12, 41)), (3600, (14, 257))])
def test_short_runs_have_twelve_epochs_as_far_as_they_have_steps(steps, expected):
    assert length(planned(NAME, steps=steps, prediction=0.1)["crossmatch_seed0"].trainer) == expected


def test_a_budget_without_room_for_an_epoch_of_a_row_is_refused():
    said = r"budget too small: self_training: 0 steps of \S+_unsup0 fit, there are 12 epochs\. Fix: raise"
    with pytest.raises(InputError, match=said):
        planned(NAME, prediction=899.95)


def test_trainers_that_differ_in_the_method_share_their_controls():
    runs = planned(NAME, f"{NAME}_tau0p85", seeds=(0, 1))
    assert sum(run.row == "supervised_steps" for run in runs.values()) == 2
    assert {"crossmatch_seed1", "crossmatch_tau0p85_seed1"} <= runs.keys()
    assert runs["crossmatch_tau0p85_seed1"].control == "supervised_steps_seed1"


def test_another_optimizer_has_controls_of_its_own():
    runs = planned(NAME, f"{NAME}_optadamw")
    assert "optadamw" in runs["supervised_steps_optadamw_seed0"].trainer
    assert runs["crossmatch_optadamw_seed0"].control == "supervised_steps_optadamw_seed0"


def test_every_training_is_of_one_run():
    runs = planned(NAME, f"{NAME}_tau0p85", f"{NAME}_LA", seeds=(0, 1, 2)).values()
    assert len({(run.trainer, run.labeled_all, run.fold, run.predicted) for run in runs}) == len(runs) == 3 * 18


def test_diagnosis_is_for_semi_supervised_rows():
    diagnosed = {run.row for run in planned(NAME, diagnose=True).values() if "diagnose1" in run.trainer}
    assert diagnosed == {"crossmatch"}


# Step times


def test_the_default_the_controls_and_each_variant_are_measured():
    names = trainers_to_time([f"{NAME}_tau0p85_seed3", f"{NAME}_10epochs_tau0p85", f"{NAME}_batch8"], ROWS)
    assert names == [NAME, SUPERVISED, f"{SUPERVISED}_batch8", f"{NAME}_tau0p85", f"{NAME}_batch8"]
    assert timing.measuring(names[3], 5) == f"{NAME}_4epochs_iters5_valiters1_tau0p85_seed0"


def test_the_weight_of_the_unsupervised_loss_takes_no_time_unless_it_is_zero():
    names = [f"{NAME}_unsup1", f"{NAME}_unsup0p1_warmup0", f"{NAME}_unsup0"]
    assert trainers_to_time(names, ("semi_supervised",)) == [NAME, SUPERVISED]


def test_a_step_is_measured_in_all_epochs_but_the_first(tmp_path):
    """The model's epochs took 1800 seconds each."""
    trainer = f"{NAME}_3epochs_iters20"
    model = trained.write_model(tmp_path / "model", trainer)
    assert timing.step_seconds(model / "fold_0", trainer) == [90, 90]


def test_measurements_on_a_busy_machine_are_refused_and_removed(tmp_path):
    folds = {name: tmp_path / name for name in ("steady", "varying")}
    for fold in folds.values():
        fold.mkdir()
    with pytest.raises(InputError, match=r"busy machine: varying: epochs differ by 27%\. Fix: call it again") as caught:
        timing.refuse_busy({"steady": [1.0, 1.1, 1.19], "varying": [1.0, 1.1, 1.3]}, folds)
    assert len(caught.value.problems) == 1
    assert [fold.exists() for fold in folds.values()] == [True, False]


def test_step_times_are_of_one_number_of_threads_and_complete(tmp_path):
    asked, file = request(tmp_path, "--threads", "1"), tmp_path / "step_times.json"
    timing.write_times(file, asked, {NAME: [0.5, 0.6, 0.61]}, None)
    assert timing.read_times(file, asked, [NAME], predicted=False).step_of(f"{NAME}_12epochs_seed3") == 0.6
    said = (
        rf"step times missing in .*: {SUPERVISED}, prediction\.[\s\S]*another number of threads in .*: 1 in the file, 2"
    )
    with pytest.raises(InputError, match=said):
        timing.read_times(file, request(tmp_path, "--threads", "2"), [NAME, SUPERVISED], predicted=True)


def test_a_command_of_the_host_gets_the_threads_asked_for(monkeypatch):
    found = []
    entry = SimpleNamespace(load=lambda: lambda: found.append((multiprocessing.cpu_count(), sys.argv)))
    monkeypatch.setattr(with_threads, "entry_points", lambda group, name: [entry])
    monkeypatch.setattr(multiprocessing, "cpu_count", multiprocessing.cpu_count)
    monkeypatch.setattr(sys, "argv", ["with_threads", "3", "nnUNetv2_train", "501"])
    with pytest.raises(SystemExit) as ended:
        with_threads.main()
    assert (found, ended.value.code) == ([(3, ["nnUNetv2_train", "501"])], None)


# Requests and lists


def test_a_folder_belongs_to_one_request(tmp_path):
    requests.claim_folder(tmp_path, request(tmp_path))
    requests.claim_folder(tmp_path, request(tmp_path))
    with pytest.raises(InputError, match=r"folder of another protocol.*small: null before, 16 now"):
        requests.claim_folder(tmp_path, request(tmp_path, "--small"))


def test_trainers_seeds_and_rows_of_a_folder_grow_with_later_calls(tmp_path):
    requests.claim_folder(tmp_path, request(tmp_path, "--rows", "semi_supervised"))
    more = ["--rows", "upper_bound", "--seeds", "3", "--trainer", f"{NAME}_tau0p6"]
    joined = requests.claim_folder(tmp_path, request(tmp_path, *more))
    assert (joined.rows, joined.seeds) == (("semi_supervised", "upper_bound"), (0, 3))
    assert joined.trainer == (NAME, f"{NAME}_tau0p6")
    assert requests.claim_folder(tmp_path, request(tmp_path)).seeds == (0, 3)


def test_missing_data_leave_no_trace(tmp_path):
    with pytest.raises(InputError, match=r"folder missing in .*data: given with --data"):
        protocol.run_protocol(*parsed(tmp_path))
    assert not (tmp_path / "out").exists()


def test_data_without_a_scored_case_leave_no_trace(tmp_path):
    fake_data.write_acdc_h5(tmp_path / "data", ["patient038", "patient002"])
    with pytest.raises(
        InputError, match=r'nothing to score in .*data: it holds none of the 20 entries of the list "test"'
    ):
        protocol.run_protocol(*parsed(tmp_path, "--on", "test", "--allow-missing"))
    assert not (tmp_path / "out").exists()


def test_one_scored_case_is_enough(tmp_path):
    fake_data.write_acdc_h5(tmp_path / "data", ["patient002"])
    asked = request(tmp_path, "--allow-missing")
    requests.check_data(asked, requests.split_lists(asked))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--small", "--configuration", "3d_fullres"], "--small in 3d needs --patch"),
        (["--trainer", NAME, f"{NAME}_seed3"], "two names differ in nothing"),
        (["--trainer", f"{SUPERVISED}_seed3"], "is supervised"),
        (["--minutes", "3"], "not allowed with"),
        (["--seeds"], "expected at least one argument"),
    ],
)
def test_contradictions_end_with_usage(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        request(tmp_path, *more)
    assert message in capsys.readouterr().err


def test_la_holds_out_ten_training_cases_for_choices_and_none_for_the_test(tmp_path):
    counts = {}
    for scored_on in ("val", "test"):
        given = ["la", "--labeled", "8", *arguments(tmp_path, "--on", scored_on)[3:]]
        lists = requests.split_lists(options.read_request(options.parser(), given)[0])
        counts[scored_on] = [len(lists[role]) for role in ("labeled", "unlabeled", "val", "test")]
    assert counts == {"val": [8, 62, 10, 20], "test": [8, 72, 0, 20]}


def test_acdc_is_scored_on_its_published_validation_patients(tmp_path):
    lists = requests.split_lists(request(tmp_path))
    assert [len(lists[role]) for role in ("labeled", "unlabeled", "val", "test")] == [1, 69, 10, 20]
    assert len(requests.all_labeled(lists)["labeled"]) == 70


def test_an_empty_list_cannot_be_scored(tmp_path):
    splits = fake_data.write_splits_file(tmp_path / "splits.json", train=["patient001", "patient002"])
    with pytest.raises(InputError, match=r'nothing to score.*"val" is empty'):
        requests.split_lists(request(tmp_path, "--splits", str(splits)))


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
    run_steps(Stages(1, tmp_path, os.environ), [Step("made", ("false",), tmp_path / "output")])
    assert "[ 1/1] done before: made" in capsys.readouterr().out


def test_a_protocol_repeats_its_commands_in_a_shell_script(tmp_path):
    script = tmp_path / "commands.sh"
    roots = {f"nnUNet_{kind}": str(tmp_path / kind) for kind in ("raw", "preprocessed", "results")}
    step = Step("say", ("sh", "-c", f"echo $COLOUR > '{tmp_path}/said'"))
    write_script(script, {**roots, "COLOUR": "light blue"}, [step])
    subprocess.run(["sh", str(script)], check=True)
    assert (tmp_path / "said").read_text() == "light blue\n"


def test_training_continues_and_prediction_takes_final_weights(tmp_path):
    asked = Protocol(request(tmp_path), tmp_path)
    run = planned(NAME)["crossmatch_seed0"]
    train, predict, *_ = asked.run_steps(run, None)
    assert train.command[-1] == "--c"
    assert train.output == asked.fold(Training(run.trainer)) / "checkpoint_final.pth"
    assert shlex.join(predict.command).count("-chk checkpoint_final.pth") == 1


def test_the_upper_bound_predicts_the_same_images_with_its_own_data_set(tmp_path):
    asked, runs = Protocol(request(tmp_path), tmp_path), planned(NAME)
    train, predict, *_ = asked.run_steps(runs["upper_bound_seed0"], None)
    assert predict.command[2] == asked.run_steps(runs["crossmatch_seed0"], None)[1].command[2]
    assert predict.command[2] == str(tmp_path / "nnUNet_raw" / "Dataset502_ACDC" / "imagesVal")
    assert train.command[1] == predict.command[6] == "552"


def test_predictions_are_made_with_and_without_mirroring(tmp_path):
    steps = Protocol(request(tmp_path), tmp_path).run_steps(planned(NAME)["crossmatch_seed0"], None)
    predicting = [step for step in steps if step.command[0] == "nnUNetv2_predict"]
    assert ["--disable_tta" in step.command for step in predicting] == [False, True]
    assert len({step.command[4] for step in predicting}) == 2


def test_self_training_learns_from_its_own_predictions_in_a_data_set_of_its_own(tmp_path):
    asked, run = Protocol(request(tmp_path), tmp_path), planned(NAME)["self_training_weighted_seed0"]
    steps = asked.run_steps(run, None)
    trained_on = [step.command[1:4] for step in steps if step.command[0] == "nnUNetv2_train"]
    assert trained_on == [("502", "2d", "all"), ("603", "2d", "1")]
    predicted = steps[1].command
    assert predicted[2] == str(tmp_path / "nnUNet_raw" / "Dataset502_ACDC" / "imagesUn")
    assert steps[2].command[-1] == predicted[4]


def test_half_of_the_draws_are_of_labeled_cases():
    names = prepare.half_labeled(["a", "b"], ["c", "d", "e"])
    assert [names.count(name) for name in "abcde"] == [3, 3, 2, 2, 2]


def test_threads_are_given_to_training_and_prediction(tmp_path):
    asked = request(tmp_path, "--threads", "1")
    train, predict, *_ = Protocol(asked, tmp_path).run_steps(planned(NAME)["crossmatch_seed0"], None)
    if asked.device == "cpu":
        assert [step.command[2:5] for step in (train, predict)] == [
            ("benchmarks.protocol.with_threads", "1", f"nnUNetv2_{what}") for what in ("train", "predict")
        ]
    assert requests.variables(tmp_path, asked)["OMP_NUM_THREADS"] == "1"


# Calls


def plan(folder: Path, *more: str) -> str:
    return protocol.run_protocol(*parsed(folder, "--step-seconds", "60", "20", "--plan", *more))


def test_a_plan_with_known_step_times_prints_and_writes_nothing(tmp_path):
    said = plan(tmp_path)
    assert "ratio 3.00" in said
    assert "training time of 4 runs: 0:06 h:mm" in said
    assert not (tmp_path / "out").exists()


def test_self_training_with_given_step_times_needs_that_of_the_prediction(tmp_path, capsys):
    more = ["--rows", "self_training", "--steps", "9"]
    with pytest.raises(SystemExit):
        plan(tmp_path, *more)
    assert "--step-seconds needs --prediction-seconds" in capsys.readouterr().err
    assert "self-training" in plan(tmp_path, *more, "--prediction-seconds", "10")


def test_a_plan_that_was_made_is_gone_on_with(tmp_path, monkeypatch):
    """Also one of an earlier version, without the fields of today."""
    asked, given = parsed(tmp_path, "--step-seconds", "1", "1")
    old = Run("crossmatch", "", 0, f"{NAME}_1epochs_iters2_seed0", 2, 2.0, "supervised_steps_seed0")
    fields = ("row", "variant", "seed", "trainer", "steps", "seconds", "control", "labeled_all")
    given.folder.mkdir()
    write_json(given.folder / "runs.json", [{name: getattr(old, name) for name in fields}])
    ran = []
    monkeypatch.setattr(protocol, "check_data", lambda *_: None)
    monkeypatch.setattr(protocol, "do", lambda *_: None)
    monkeypatch.setattr(protocol, "run_all", lambda _, __, runs, *___: ran.extend(runs))
    protocol.run_protocol(asked, given)
    assert [run.row for run in ran] == ["supervised_steps", "supervised_compute", "crossmatch", "upper_bound"]
    assert ran[2] == old
    assert len(read_runs(given.folder / "runs.json")) == 4


def test_step_times_are_added_to_those_measured_before(tmp_path):
    file, asked = tmp_path / "step_times.json", request(tmp_path, "--threads", "1")
    timing.write_times(file, asked, {NAME: [1.0, 1.1, 1.2]}, 30.0)
    timing.write_times(file, asked, {SUPERVISED: [0.2, 0.2, 0.2]}, None)
    times = timing.read_times(file, asked, [NAME, SUPERVISED], predicted=True)
    assert (times.step, times.prediction) == ({NAME: 1.1, SUPERVISED: 0.2}, 30.0)


def test_a_record_of_an_earlier_version_is_the_same_request(tmp_path):
    requests.claim_folder(tmp_path, asked := request(tmp_path))
    record = json.loads((tmp_path / "protocol.json").read_text())
    before = {name: value for name, value in record.items() if name not in requests.DEFAULTS}
    before["rows"] = ["supervised_steps", "supervised_compute", "crossmatch", "upper_bound"]
    write_json(tmp_path / "protocol.json", before)
    requests.claim_folder(tmp_path, asked)


def test_one_process_works_in_a_folder(tmp_path):
    with protocol.alone_in(tmp_path), pytest.raises(InputError, match="another process works here"):
        with protocol.alone_in(tmp_path):
            pass
    with protocol.alone_in(tmp_path):
        pass


def test_a_queue_runs_every_line_and_tells_those_that_failed_at_the_end(tmp_path, monkeypatch):
    queue, ran = tmp_path / "queue.txt", []
    lines = [shlex.join(arguments(tmp_path / name)) for name in ("first", "second")]
    queue.write_text("\n# comment\n" + lines[0])

    def run(_: requests.Request, given: argparse.Namespace) -> str:
        ran.append(given.folder.parent.name)
        queue.write_text("\n".join(lines))
        if len(ran) == 1:
            raise InputError(Problem("no images", "", "none", "add some"))
        return "done"

    monkeypatch.setattr(protocol, "run_protocol", run)
    with pytest.raises(InputError, match="no images"):
        protocol.run_queue(queue)
    assert ran == ["first", "second"]


def test_results_are_copied_after_each_run_without_figures(tmp_path, monkeypatch):
    asked, runs = Protocol(request(tmp_path), tmp_path / "out"), list(planned(NAME).values())[:2]
    copied = []

    def write(folder: Path) -> None:
        for run in runs[: len(copied) + 1]:
            for file in ("scores.json", "report.html", "unmirrored/scores.json"):
                (folder / "results" / run.name / file).parent.mkdir(parents=True, exist_ok=True)
                write_json(folder / "results" / run.name / file, {"reference": str(tmp_path / "labelsVal"), "n": [1]})

    monkeypatch.setattr(protocol, "run_steps", lambda *_: None)
    monkeypatch.setattr(protocol, "write_results", write)
    monkeypatch.setattr(protocol, "publish", lambda *given: (results.publish(*given), copied.append(files(given[1]))))
    protocol.run_all(asked, Stages(0, tmp_path, {}), runs, tmp_path / "copy", runs)
    first = {f"{runs[0].name}/scores.json", f"{runs[0].name}/unmirrored/scores.json"}
    assert json.loads((tmp_path / "copy" / runs[0].name / "scores.json").read_text()) == {
        "reference": "labelsVal", "n": [1],
    }  # fmt: skip
    assert copied == [first, first | {name.replace(runs[0].name, runs[1].name) for name in first}]


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


# Plans and results


def test_small_plans_are_coarse_and_have_folders_of_their_own():
    configuration = {
        "data_identifier": "nnUNetPlans_2d", "spacing": [1.0, 1.25], "median_image_size_in_voxels": [200, 160],
        "architecture": {"arch_kwargs": {}},
    }  # fmt: skip
    plans = prepare.protocol_plans({"configurations": {"2d": configuration}}, "Dataset552_ACDC")
    small = plans["configurations"]["2d"]
    prepare.shrink(small, (96, 96), 16, 2.5)
    assert (small["data_identifier"], small["spacing"]) == ("nnUNetProtocolPlans_2d", [2.5, 2.5])
    assert small["median_image_size_in_voxels"] == [80, 80]
    assert small["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 128]
    assert (plans["dataset_name"], configuration["spacing"]) == ("Dataset552_ACDC", [1.0, 1.25])


def test_seeds_are_summed_up_by_mean_and_deviation():
    found = results.over_seeds([{"dice": 0.8}, {"dice": 0.9}])
    assert found["dice"] == pytest.approx({"mean": 0.85, "sd": 0.0707106781})


def test_the_amount_of_a_class_is_over_all_cases(tmp_path):
    one = {"a": {"prediction_voxels": 30, "reference_voxels": 10}, "b": {"prediction_voxels": 1, "reference_voxels": 0}}
    two = {"a": {"prediction_voxels": 0, "reference_voxels": 20}, "b": {"prediction_voxels": 0, "reference_voxels": 0}}
    scores = {"cases": {"one": one, "two": two}, "summary": {"a": {}}, "empty_masks": {}}
    write_json(tmp_path / "scores.json", scores)
    assert results.amounts(tmp_path / "scores.json") == pytest.approx({"a": 1.0, "b": float("nan")}, nan_ok=True)


def test_published_rows_are_those_with_as_many_labels_and_with_all(tmp_path):
    asked = request(tmp_path, "--labeled", "3")
    assert {row[1] for row in results.published_table(asked).rows} == {"3", "70"}


def test_results_say_which_cases_were_used_and_which_were_missing(tmp_path):
    asked = Protocol(request(tmp_path), tmp_path)
    cases = {"a": "labeled", "b": "unlabeled", "c": "unlabeled", "d": "val", "e": "test"}
    record = {
        "cases": {name: {"role": role} for name, role in cases.items()},
        "missing": ["f", "g", "d (1 of 2 frames)"],
    }
    lists = {"labeled": ["a"], "unlabeled": ["b", "c", "f"], "val": ["d"], "test": ["e", "g"]}
    asked.conversion_record().parent.mkdir(parents=True)
    write_json(asked.conversion_record(), record)
    write_json(asked.splits_file(False), lists)
    said = results.said_of(results.used_cases(asked))
    lacking = "2 (f, d (1 of 2 frames))"
    assert said == f"Cases: 1 labeled, 2 unlabeled, 1 val. Listed for them, but not in the data: {lacking}."


def small_acdc(folder: Path) -> list[str]:
    """Real volumes of the three published labeled patients, two unlabeled and one for validation, or generated ones."""
    if DATA.is_dir():
        patients = ("patient038", "patient050", "patient099", "patient003", "patient004", "patient002")
        files = [file for patient in patients for file in sorted((DATA / "acdc_h5").glob(f"{patient}_*.h5"))]
        every_second, every_fourth = slice(None, None, 2), slice(None, None, 4)
        subsampled_volumes(files, DATA / "acdc_h5", folder / "data", (every_second, every_fourth, every_fourth))
        return ["--labeled", "3", "--allow-missing"]
    patients = [f"patient{number:03d}" for number in (1, 2, 3)]
    fake_data.write_acdc_h5(folder / "data", patients)
    splits = fake_data.write_splits_file(
        folder / "splits.json", train=patients[:2], val=patients[2:], labeled=patients[:1]
    )
    return ["--splits", str(splits)]


@pytest.mark.slow
def test_a_whole_protocol_on_few_volumes_is_scored_and_then_done(tmp_path, monkeypatch):
    rows = ["self_training_weighted", "semi_supervised", "upper_bound"]
    seconds = ["--step-seconds", "1", "0.5", "--prediction-seconds", "0.1"]
    more = [
        "--small",
        "4",
        "--patch",
        "32",
        "32",
        "--rows",
        *rows,
        *seconds,
        "--threads",
        "1",
        "--copy-to",
        str(tmp_path / "copy"),
    ]
    given = arguments(tmp_path, *more, "--trainer", f"{NAME}_valiters1", *small_acdc(tmp_path))
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(
        protocol, "environment", lambda added: {**requests.environment(added), **command_server.variables()}
    )
    protocol.run_protocol(*options.read_request(options.parser(), given))
    written = tmp_path / "out" / "results"
    content = json.loads((written / "results.json").read_text())
    rows, cases = content["rows"], content["cases"]
    assert cases["labeled"] > 0
    assert cases["unlabeled"] > 0
    assert cases["val"] == 2
    first = {name: row["runs"][0] for name, row in rows.items()}
    assert {name: run["labeled_all"] for name, run in first.items()} == {
        "self_training_weighted": False, "crossmatch": False, "upper_bound": True,
    }  # fmt: skip
    assert {name: run["steps"] for name, run in first.items()} == {
        "self_training_weighted": 3, "crossmatch": 2, "upper_bound": 4,
    }  # fmt: skip
    for row in rows.values():
        assert all(0 <= row[way]["dice"]["mean"] <= 1 for way in ("strict", "literature", "unmirrored"))
    assert {"results.md", "commands.sh", "splits.json", "step_times.json"} <= {file.name for file in written.iterdir()}
    made = {file.name for file in (written / "crossmatch_seed0").iterdir()}
    assert made >= {"scores.json", "literature", "curves.json", "progress_crossmatch.png", "report.html"}
    assert {"results.json", "self_training_weighted_seed0/curves.json"} <= files(tmp_path / "copy")
    asked = Protocol(options.read_request(options.parser(), given)[0], tmp_path / "out")
    runs = [step for run in read_runs(asked.folder / "runs.json") for step in asked.run_steps(run, None)]
    assert all(step.proof(asked.folder).exists() for step in [*asked.data_steps(), *runs])
