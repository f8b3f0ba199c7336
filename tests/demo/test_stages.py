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

sleep = time.sleep  # the real one, where a test replaces it


@pytest.fixture
def two(tmp_path: Path) -> Stages:
    return Stages(2, tmp_path, dict(os.environ))


def test_each_stage_shows_number_time_and_command(two: Stages, capsys: pytest.CaptureFixture[str]):
    two.run("echo", "two words")
    assert capsys.readouterr().out == "[ 1/2 0:00] echo 'two words'\n"


def test_a_command_writes_its_own_log(two: Stages):
    two.run("echo", "hello")
    assert (two.folder / "logs" / "01_echo.log").read_text() == "hello\n"


def test_a_command_gets_the_environment(tmp_path: Path):
    Stages(1, tmp_path, {**os.environ, "COLOUR": "blue"}).run("sh", "-c", "echo $COLOUR")
    assert (tmp_path / "logs" / "01_sh.log").read_text() == "blue\n"


def test_a_failure_is_one_line_with_stage_command_log_and_last_output(two: Stages):
    with pytest.raises(InputError) as caught:
        two.run("sh", "-c", "echo first; echo the reason; exit 3")
    message = str(caught.value)
    assert message.startswith(f"error: stage 1 of 2 failed in {two.folder / 'logs' / '01_sh.log'}: sh -c ")
    assert "exit code 3: the reason. Fix: read it: less" in message
    assert "\n" not in message


def test_a_missing_command_is_named(two: Stages):
    with pytest.raises(InputError, match="command not found: no_such_command"):
        two.run("no_such_command")


def test_an_interruption_ends_the_command_and_its_children(two: Stages, monkeypatch: pytest.MonkeyPatch):
    def interrupt(seconds: float) -> None:
        while not (two.folder / "child").exists() or not (two.folder / "child").read_text():
            sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        two.run("sh", "-c", f"sleep 60 & echo $! > {two.folder / 'child'}; wait")
    child = int((two.folder / "child").read_text())
    assert gone(child)


def gone(process: int) -> bool:
    for _ in range(200):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
        if not state or state.startswith("Z"):
            return True
        sleep(0.01)
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


def test_a_terminal_shows_progress_in_place(two: Stages, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    two.run("sh", "-c", "echo 'Epoch 1'; sleep 0.8", epochs=3)
    assert "\r\033[K         epoch 2 of 3  0:00" in capsys.readouterr().out


def test_without_a_terminal_progress_is_a_line_now_and_then(two: Stages, monkeypatch, capsys):
    monkeypatch.setattr(stages, "PRINT_INTERVAL_SECONDS", 0)
    two.run("sh", "-c", "echo 'Epoch 1'; sleep 0.8", epochs=3)
    assert "\n         epoch 2 of 3  0:00\n" in capsys.readouterr().out
