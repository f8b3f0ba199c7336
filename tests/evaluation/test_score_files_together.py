"""The three files of scores, and the report: whole, and of one run, whoever is killed or writes there, too."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation import score_files
from nnunetv2_crossmatch.evaluation.score_files import write_scores
from nnunetv2_crossmatch.folders import exclusive
from nnunetv2_crossmatch.report import build
from nnunetv2_crossmatch.training.durable import DurableTrainer

NAMES = ("scores.csv", "scores.json", "scores.md")


@pytest.fixture(autouse=True)
def plain_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file holds nothing but what was scored."""
    monkeypatch.setattr(score_files, "write_csv", lambda scores, path: path.write_text(scores))
    monkeypatch.setattr(score_files, "scores_as_json", lambda scores, *more: scores)
    monkeypatch.setattr(score_files, "scores_as_markdown", lambda scores, *more: scores)
    monkeypatch.setattr(score_files, "json", SimpleNamespace(dumps=lambda content, **options: content))


def texts(folder: Path) -> list[str]:
    return [(folder / name).read_text().strip() for name in NAMES if (folder / name).exists()]


def killed_at(number: int, write: Callable[[], object]) -> None:
    """Run ``write`` in a fork that ends without any cleaning when it renames for the ``number``-th time."""
    replace, calls = Path.replace, iter(range(100))

    def replace_or_die(source: Path, target: Path) -> Path:
        if next(calls) == number:
            os._exit(0)
        return replace(source, target)

    if child := os.fork():
        os.waitpid(child, 0)
        return
    with suppress(BaseException):
        Path.replace = replace_or_die
        write()
    os._exit(0)


@pytest.mark.parametrize("number", range(6))
def test_a_killed_evaluation_leaves_no_files_of_two_runs(tmp_path: Path, number: int) -> None:
    write_scores("old", tmp_path, {})
    killed_at(number, lambda: write_scores("new", tmp_path, {}))
    assert len(set(texts(tmp_path))) <= 1
    write_scores("next", tmp_path, {})
    assert texts(tmp_path) == ["next"] * 3
    assert {file.name for file in tmp_path.iterdir()} == {*NAMES}


def test_two_evaluations_into_one_folder_leave_the_files_of_one(tmp_path: Path, monkeypatch) -> None:
    """The second one comes when the first has renamed one of its files."""
    rename, second = score_files.flush_and_rename, threading.Thread(target=write_scores, args=("second", tmp_path, {}))

    def rename_and_let_in(source: Path, target: Path) -> None:
        rename(source, target)
        if target.name == "scores.csv" and second.ident is None:
            second.start()
            second.join(timeout=0.5)

    monkeypatch.setattr(score_files, "flush_and_rename", rename_and_let_in)
    write_scores("first", tmp_path, {})
    second.join()
    assert texts(tmp_path) == ["second"] * 3


def test_a_folder_that_stays_in_use_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(score_files, "WAIT_SECONDS", 0.05)
    with exclusive(tmp_path / "scores"), pytest.raises(InputError, match="another process writes here"):
        write_scores("x", tmp_path, {})
    assert texts(tmp_path) == []


def left_over(file: Path) -> Path:
    """What a writer of ``file`` leaves that was killed."""
    folder = file.with_name(f".{file.name}.{socket.gethostname()}.abcd1234.partial")
    folder.mkdir()
    (folder / file.name).touch()
    return folder


def test_what_a_killed_report_left_is_removed_by_the_next(tmp_path: Path, monkeypatch) -> None:
    left = left_over(tmp_path / "report.html")
    monkeypatch.setattr(build, "collect_content", lambda request, output: None)
    monkeypatch.setattr(build, "case_entries", lambda content, request: [])
    monkeypatch.setattr(build, "render_page", lambda *content: "page")
    build.write_report(SimpleNamespace(command=""), tmp_path / "report.html")
    assert not left.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_what_killed_writers_of_any_file_left_is_removed_by_the_next_training(tmp_path: Path) -> None:
    left = [left_over(tmp_path / name) for name in ("progress_crossmatch.png", "checkpoint_best.pth")]
    trainer = SimpleNamespace(local_rank=0, lock=None, folder=tmp_path)
    DurableTrainer.lock_folder(trainer)
    trainer.lock.release()
    assert not any(folder.exists() for folder in left)
