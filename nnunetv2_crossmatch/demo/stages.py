"""Runs console commands one after the other, each with its own log, and shows on the terminal how far they are.

Limit: knows nothing of what the commands do; of their output it reads only counters such as ``Epoch 3`` or ``4/12``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem

POLL_SECONDS = 0.5
QUIET_SECONDS = 15  # without a terminal progress is a line every so often, not a line that changes
TAIL_BYTES = 4000
EPOCH = re.compile(r"Epoch (\d+)\s*$", re.MULTILINE)
COUNT = re.compile(r"\b(\d+/\d+) \[")  # tqdm's


@dataclass
class Stages:
    """``total`` stages in ``folder``; commands get ``environment`` and write ``logs/<nn>_<command>.log``."""

    total: int
    folder: Path
    environment: Mapping[str, str]
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announce the next stage; the block does it."""
        self.done += 1
        print(f"[{self.done:2d}/{self.total} {self.elapsed()}] {title}", flush=True)
        yield

    def run(self, *command: str, epochs: int | None = None) -> None:
        """Do one command as the next stage and wait for its end; ``epochs`` are those that a training will count.

        Raises:
            InputError: the command is missing or failed; names stage, command and log.
        """
        with self.stage(shlex.join(command)):
            log = self.folder / "logs" / f"{self.done:02d}_{command[0]}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            code = self._wait(self._found(command), log, epochs)
            if code != 0:
                raise InputError(self._failed(command, log, f"exit code {code}: {_last_line(log)}"))

    def elapsed(self) -> str:
        """Minutes and seconds since the first stage could start."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d}"

    def _found(self, command: tuple[str, ...]) -> list[str]:
        program = shutil.which(command[0], path=self.environment["PATH"])
        if program is None:
            fix = "install the package into this environment: pip install . in its sources"
            raise InputError(Problem("command not found", "", f"{command[0]} (stage {self.done} of {self.total})", fix))
        return [program, *command[1:]]

    def _failed(self, command: tuple[str, ...], log: Path, detail: str) -> Problem:
        stage = f"stage {self.done} of {self.total} failed"
        return Problem(stage, log, f"{shlex.join(command)}: {detail}", f'read it: less "{log}"')

    def _wait(self, command: list[str], log: Path, epochs: int | None) -> int:
        tell = _teller()
        # A session of its own, so that loader workers end with the command when the demo is interrupted.
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=dict(self.environment), start_new_session=True
            )
        try:
            while process.poll() is None:
                tell(f"{progress(_tail(log), epochs)}  {self.elapsed()}")
                time.sleep(POLL_SECONDS)
        finally:
            tell("")
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        return process.returncode


def progress(output: str, epochs: int | None) -> str:
    """What the end of a command's output says about how far it is; an empty string if it says nothing."""
    if epochs is not None:
        found = EPOCH.findall(output)
        return f"epoch {min(int(found[-1]) + 1, epochs)} of {epochs}" if found else "starting"
    counts = COUNT.findall(output)
    return counts[-1] if counts else "running"


def _teller() -> Callable[[str], None]:
    """Shows a text: in place on a terminal; elsewhere as a line, not too often. An empty text ends it."""
    return _tell_in_place if sys.stdout.isatty() else _quiet_teller()


def _tell_in_place(text: str) -> None:
    print(f"\r\033[K{'         ' if text else ''}{text}", end="", flush=True)


def _quiet_teller() -> Callable[[str], None]:
    last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        if text and time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            print(f"         {text}", flush=True)

    return tell


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
