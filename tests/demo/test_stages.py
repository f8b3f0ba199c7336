from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_crossmatch.demo import stages
from nnunetv2_crossmatch.demo.stages import Stages, parse_progress
from nnunetv2_crossmatch.errors import InputError

real_sleep = time.sleep  # kept for tests that replace ``time.sleep``


@pytest.fixture
def two_stages(tmp_path: Path) -> Stages:
    return Stages(2, tmp_path, dict(os.environ))


def test_each_stage_prints_number_time_and_command(two_stages: Stages, capsys: pytest.CaptureFixture[str]):
    two_stages.run("echo", "two words")
    assert capsys.readouterr().out == "[ 1/2 0:00] echo 'two words'\n"


def test_a_command_writes_its_own_log(two_stages: Stages):
    two_stages.run("echo", "hello")
    assert (two_stages.folder / "logs" / "01_echo.log").read_text() == "hello\n"


def test_a_command_gets_the_environment(tmp_path: Path):
    Stages(1, tmp_path, {**os.environ, "COLOUR": "blue"}).run("sh", "-c", "echo $COLOUR")
    assert (tmp_path / "logs" / "01_sh.log").read_text() == "blue\n"


def test_a_failure_is_one_line_with_stage_command_log_and_last_output(two_stages: Stages):
    with pytest.raises(InputError) as caught:
        two_stages.run("sh", "-c", "echo first; echo the reason; exit 3")
    message = str(caught.value)
    assert message.startswith(f"error: stage 1 of 2 failed in {two_stages.folder / 'logs' / '01_sh.log'}: sh -c ")
    assert "exit code 3: the reason. Fix: read it: less" in message
    assert "\n" not in message


def test_a_missing_command_is_named(two_stages: Stages):
    with pytest.raises(InputError, match="command not found: no_such_command"):
        two_stages.run("no_such_command")


def test_an_interruption_ends_the_command_and_its_children(two_stages: Stages, monkeypatch: pytest.MonkeyPatch):
    def interrupt(seconds: float) -> None:
        while not (two_stages.folder / "child").exists() or not (two_stages.folder / "child").read_text():
            real_sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        two_stages.run("sh", "-c", f"sleep 60 & echo $! > {two_stages.folder / 'child'}; wait")
    child = int((two_stages.folder / "child").read_text())
    assert has_ended(child)


def test_an_interruption_ends_the_command_where_there_are_no_groups_of_processes(two_stages: Stages, monkeypatch):
    started: list[int] = []

    def interrupt(seconds: float) -> None:
        started.append(int((two_stages.folder / "logs" / "01_sh.log").read_text() or 0))
        if started[-1]:
            raise KeyboardInterrupt
        real_sleep(0.01)

    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(stages.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        two_stages.run("sh", "-c", "echo $$; exec sleep 60")
    assert has_ended(started[-1])


def has_ended(process: int) -> bool:
    for _ in range(200):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
        if not state or state.startswith("Z"):
            return True
        real_sleep(0.01)
    os.kill(process, signal.SIGKILL)
    return False


@pytest.mark.parametrize(
    ("output", "epochs", "shown"),
    [
        ("2026-01-01 10:00:00.1: Epoch 0\n", 5, "epoch 1 of 5"),
        ("...: Epoch 3\n...: Epoch time: 2.1 s\n", 5, "epoch 4 of 5"),
        ("Using device: cpu\n", 5, "starting"),
        ("cases:  20%|##        | 1/5 [00:01<00:04]\rcases:  40%|####      | 2/5 [00:02<00:03]", None, "2/5"),
        ("loading\n", None, "running"),
    ],
)
def test_progress_is_read_from_the_output(output: str, epochs: int | None, shown: str):
    assert parse_progress(output, epochs) == shown


def test_a_terminal_shows_progress_in_place(two_stages: Stages, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    two_stages.run("sh", "-c", "echo 'Epoch 1'; sleep 0.8", epochs=3)
    assert "\r\033[K         epoch 2 of 3  0:00" in capsys.readouterr().out


def test_without_a_terminal_progress_is_printed_as_occasional_lines(two_stages: Stages, monkeypatch, capsys):
    monkeypatch.setattr(stages, "PRINT_INTERVAL_SECONDS", 0)
    two_stages.run("sh", "-c", "echo 'Epoch 1'; sleep 0.8", epochs=3)
    assert "\n         epoch 2 of 3  0:00\n" in capsys.readouterr().out
