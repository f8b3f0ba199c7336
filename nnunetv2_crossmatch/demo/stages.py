"""Runs console commands one after the other, each with its own log, and shows their progress on the terminal.

Limit: reads only counters such as ``Epoch 3`` or ``4/12`` from the commands' output.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem, command_line

POLL_SECONDS = 0.5
PRINT_INTERVAL_SECONDS = 15  # between two lines of progress if stdout is no terminal
TAIL_BYTES = 4000
EPOCH_LINE = re.compile(r"Epoch (\d+)\s*$", re.MULTILINE)
TQDM_COUNT = re.compile(r"\b(\d+/\d+) \[")  # tqdm's


@dataclass
class Stages:
    """Runs ``total`` stages in ``folder``; commands get ``environment`` and write ``logs/<nn>_<command>.log``."""

    total: int
    folder: Path
    environment: Mapping[str, str]
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Print the title of the next stage, whose work is the body of the ``with`` statement."""
        self.done += 1
        print(f"[{self.done:2d}/{self.total} {self.elapsed()}] {title}", flush=True)
        yield

    def run(self, *command: str, epochs: int | None = None) -> None:
        """Run one command as the next stage and wait for its end; ``epochs`` is the total for a training's progress.

        Raises:
            InputError: the command is missing or failed; names stage, command and log.
        """
        with self.stage(command_line(*command)):
            log = self.folder / "logs" / f"{self.done:02d}_{command[0]}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            code = self._run_and_wait(self._resolve_command(command), log, epochs)
            if code != 0:
                raise InputError(self._failure_problem(command, log, f"exit code {code}: {_last_line(log)}"))

    def elapsed(self) -> str:
        """Minutes and seconds since this object was created."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d}"

    def _resolve_command(self, command: tuple[str, ...]) -> list[str]:
        program = shutil.which(command[0], path=self.environment["PATH"])
        if program is None:
            fix = "install the package into this environment: pip install . in its sources"
            raise InputError(Problem("command not found", "", f"{command[0]} (stage {self.done} of {self.total})", fix))
        return [program, *command[1:]]

    def _failure_problem(self, command: tuple[str, ...], log: Path, detail: str) -> Problem:
        stage = f"stage {self.done} of {self.total} failed"
        return Problem(stage, log, f"{command_line(*command)}: {detail}", f"read it: {command_line('less', log)}")

    def _run_and_wait(self, command: list[str], log: Path, epochs: int | None) -> int:
        show_progress = _progress_printer()
        # In a new session, so that loader workers end with the command when the demo is interrupted.
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=dict(self.environment), start_new_session=True
            )
        try:
            while process.poll() is None:
                show_progress(f"{parse_progress(_read_tail(log), epochs)}  {self.elapsed()}")
                time.sleep(POLL_SECONDS)
        finally:
            show_progress("")
            if process.poll() is None:
                _end(process)
                process.wait()
        return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGTERM)
    else:  # Windows has no groups of processes; loader workers exit with their parent
        process.terminate()


def parse_progress(output: str, epochs: int | None) -> str:
    """Progress of a command, read from the end of its output: epoch or item count, else ``starting`` or ``running``."""
    if epochs is not None:
        found = EPOCH_LINE.findall(output)
        return f"epoch {min(int(found[-1]) + 1, epochs)} of {epochs}" if found else "starting"
    counts = TQDM_COUNT.findall(output)
    return counts[-1] if counts else "running"


def _progress_printer() -> Callable[[str], None]:
    """Function that shows a text in place on a terminal, else as occasional lines; an empty text clears it."""

    return _print_in_place if sys.stdout.isatty() else _interval_printer()


def _print_in_place(text: str) -> None:
    print(f"\r\033[K{'         ' if text else ''}{text}", end="", flush=True)


def _interval_printer() -> Callable[[str], None]:
    last = time.monotonic()

    def show_progress(text: str) -> None:
        nonlocal last
        if text and time.monotonic() - last > PRINT_INTERVAL_SECONDS:
            last = time.monotonic()
            print(f"         {text}", flush=True)

    return show_progress


def _read_tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in _read_tail(log).splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
