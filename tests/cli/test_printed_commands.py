"""Every command that a tool prints is one that can be copied: its own parser accepts it, paths with a blank included.

The commands are parsed by their own parsers, which stop before any work; one is executed as printed.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TinyDataset, copy_dataset, renamed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from segmentation_folders import ball, write
from trainers import make_trainer

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.cli import check, model_export, pseudo_label, report, start_from
from nnunetv2_crossmatch.data.plans_check import check_dataset_name
from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled, raw_case_names
from nnunetv2_crossmatch.data.unlabeled_folder import unlabeled_folder_of
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.errors import InputError, command_line
from nnunetv2_crossmatch.evaluation.evaluate import pair_files
from nnunetv2_crossmatch.report.case_pictures import CaseFiles, viewer_commands
from nnunetv2_crossmatch.training.requirements import check_writable, preprocess_command

NAME = "Dataset998_my knee's"
TRAINER = "nnUNetTrainerCrossMatch_1epochs_iters1_valiters1"
COMMAND = re.compile(r"""\b(?:nnUNetv2_\w+|mkdir|chmod|less)(?: (?:'[^']*'|"[^"]*"|[^\s,;'"])+)+""")


@pytest.fixture
def knee(tiny_prepared: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    """A data set with a blank and a quotation mark in its name, in a folder with a blank."""
    (tmp_path / "my data").mkdir()
    return renamed(copy_dataset(tiny_prepared, tmp_path / "my data", monkeypatch), NAME)


def told(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def plans_of(knee: TinyDataset) -> PlansManager:
    return PlansManager(str(knee.plans_file))


def preprocess_line(knee: TinyDataset, **_: object) -> str:
    return unlabeled_folder_of(plans_of(knee), "2d", "nnUNetPlans").command


def labeled_line(knee: TinyDataset, **_: object) -> str:
    return preprocess_command(plans_of(knee), "2d")


def plans_of_another(knee: TinyDataset, **_: object) -> str:
    plans = {**json.loads(knee.plans_file.read_text()), "dataset_name": "Dataset001_Original"}
    knee.plans_file.write_text(json.dumps(plans))
    return told(lambda: check_dataset_name(knee.plans_file))


def not_planned(knee: TinyDataset, **_: object) -> str:
    (knee.preprocessed / "dataset.json").unlink()
    return told(lambda: raw_case_names(NAME))


def no_plans(knee: TinyDataset, **_: object) -> str:
    return told(lambda: preprocess_unlabeled(NAME, "otherPlans", [], 1))


def check_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_crossmatch_check", "-d", NAME, *options])
    with pytest.raises(SystemExit):
        check.main()
    return capsys.readouterr().out.replace("nnUNetv2_train ...", "")


def check_without_plans(knee: TinyDataset, monkeypatch, capsys, **_: object) -> str:
    return check_output(monkeypatch, capsys, "-p", "otherPlans")


def check_without_cases(knee: TinyDataset, monkeypatch, capsys, **_: object) -> str:
    for folder in knee.preprocessed.glob("nnUNetPlans_*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    return check_output(monkeypatch, capsys)


def folder_missing(knee: TinyDataset, monkeypatch, **_: object) -> str:
    monkeypatch.setenv("nnUNet_results", str(knee.root / "no results"))
    return told(folders.results_folder)


def folder_not_writable(knee: TinyDataset, monkeypatch, **_: object) -> str:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    return told(lambda: check_writable(knee.results))


def started_from(knee: TinyDataset, monkeypatch, capsys, **_: object) -> str:
    trainer = make_trainer(knee, TRAINER)
    trainer.initialize()
    model = knee.root / "a model.pth"
    trainer.save_checkpoint(str(model))
    run = ("start", NAME, "2d", "all", "-tr", f"{TRAINER}_lr0p003", "-m", str(model))
    monkeypatch.setattr(sys, "argv", list(run))
    start_from.main()
    return capsys.readouterr().out


def pseudo_labeled(knee: TinyDataset, monkeypatch, capsys, **_: object) -> str:
    monkeypatch.setattr(pseudo_label, "CasePredictor", lambda *_: None)
    monkeypatch.setattr(pseudo_label, "make_pseudo_labeled", lambda *_: knee.raw)
    monkeypatch.setattr(sys, "argv", ["pseudo_label", "-d", NAME, "-o", "511", "-m", str(knee.results)])
    pseudo_label.main()
    return capsys.readouterr().out


def exported(knee: TinyDataset, **_: object) -> str:
    model = knee.results / f"{TRAINER}__nnUNetPlans__2d"
    (model / "fold_all").mkdir(parents=True)
    (model / "fold_all" / "checkpoint_final.pth").touch()
    return command_line(*model_export.predict_command(model, "cpu"))


def reported(knee: TinyDataset, monkeypatch, **_: object) -> str:
    lines = []

    def note(request: SimpleNamespace, output: Path) -> None:
        lines.append(request.command)
        output.touch()

    monkeypatch.setattr(report, "write_report", note)
    page = knee.root / "a page.html"
    monkeypatch.setattr(sys, "argv", ["x", "-r", str(knee.raw / "labelsTs"), "-p", str(knee.root), "-o", str(page)])
    report.main()
    return lines[0]


PRINTERS = [
    preprocess_line, labeled_line, plans_of_another, not_planned, no_plans, check_without_plans, check_without_cases,
    folder_missing, folder_not_writable, started_from, pseudo_labeled, exported, reported,
]  # fmt: skip


class Parsed(Exception):
    """Raised in place of what a command would do."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Let the parser of a command read its words; run the small programs of the system."""
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        _, unknown = parse_known_args(parser)
        assert not unknown
        raise Parsed

    def parse_words(words: list[str]) -> None:
        if not words[0].startswith("nnUNetv2_"):
            subprocess.run(words, check=True)
            return
        (entry,) = entry_points(group="console_scripts", name=words[0])
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
            patch.setattr(sys, "argv", words)
            with pytest.raises(Parsed):
                entry.load()()

    return parse_words


@pytest.mark.parametrize("printer", PRINTERS, ids=lambda printer: printer.__name__)
def test_a_printed_command_is_accepted_by_its_parser(knee: TinyDataset, parse, monkeypatch, capsys, printer):
    text = printer(knee=knee, monkeypatch=monkeypatch, capsys=capsys)
    lines = COMMAND.findall(text)
    assert lines, text
    for line in lines:
        parse(shlex.split(line))


def test_the_hint_of_evaluation_is_accepted_by_its_parser(tmp_path: Path, parse):
    write(tmp_path / "reference" / "a_my seg.nii.gz", ball())
    write(tmp_path / "predictions" / "a.nii.gz", ball())
    hint = told(lambda: pair_files(tmp_path / "reference", tmp_path / "predictions", ".nii.gz"))
    options = shlex.split(hint.partition("Fix: add ")[2])
    parse(["nnUNetv2_crossmatch_evaluate", "-r", "reference", "-p", "predictions", *options])


def test_the_log_of_a_failed_stage_is_named_as_one_word(tmp_path: Path):
    (tmp_path / "my demo").mkdir()
    stages = Stages(1, tmp_path / "my demo", {"PATH": "/bin:/usr/bin"})
    line = told(lambda: stages.run("false", "a b")).partition("read it: ")[2]
    program, log = shlex.split(line)
    assert program == "less"
    assert Path(log).is_file()


def test_the_viewers_get_files_with_blanks_as_one_word(tmp_path: Path):
    files = (tmp_path / "my predictions" / "a.nii.gz", tmp_path / "my labels" / "a.nii.gz")
    case = CaseFiles(files[1].parent, {"p": files[0].parent}, None, {"p": {"a": files}}, {})
    lines = viewer_commands("a", case)
    assert shlex.split(lines["ITK-SNAP 4"])[-2:] == [str(files[1]), str(files[0])]
    assert str(files[1]) in shlex.split(lines["3D Slicer"])[2]


@pytest.fixture(scope="module")
def executed(tiny_prepared: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The command for unlabeled cases as printed, in a shell, by a user whose home may not be written to."""
    root = tmp_path_factory.mktemp("my data")
    with pytest.MonkeyPatch.context() as patch:
        knee = renamed(copy_dataset(tiny_prepared, root, patch), NAME)
        environment = {**knee.env, "HOME": "/proc", "XDG_CONFIG_HOME": "/proc", "XDG_CACHE_HOME": "/proc"}
        return subprocess.run(
            ["sh", "-c", preprocess_line(knee)], env=environment, capture_output=True, text=True, timeout=300
        )


def test_a_printed_command_runs_as_printed(executed: subprocess.CompletedProcess[str]):
    assert executed.returncode == 0, executed.stderr
    assert f"{NAME} 2d: 0 of 4 unlabeled cases to preprocess" in executed.stdout


def test_a_home_without_permission_to_write_is_no_hindrance(executed: subprocess.CompletedProcess[str]):
    assert executed.returncode == 0, executed.stderr
    assert "Traceback" not in executed.stderr
