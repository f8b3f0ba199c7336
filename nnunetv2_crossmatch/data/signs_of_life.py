"""Signs of life of a process: a file that it touches, for file systems that keep locks to each machine.

Limit: a machine that stands still for :data:`STALE_SECONDS` counts as dead.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

BEAT_SECONDS = 20.0  # seconds between two signs of life
STALE_SECONDS = 120.0  # seconds without one after which a process on another machine counts as dead
POLL_SECONDS = 1.0


class SignsOfLife:
    """Touches ``file`` until it is stopped or the process ends."""

    def __init__(self, file: Path) -> None:
        self._file, self._stopped = file, threading.Event()
        threading.Thread(target=self._touch, daemon=True).start()

    def _touch(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            with suppress(OSError):  # the next one may succeed
                os.utime(self._file)

    def stop(self) -> None:
        """Touch it no more."""
        self._stopped.set()


def may_live(file: Path, clock: Path) -> bool:
    """Whether ``file`` exists and was touched within :data:`STALE_SECONDS`.

    Args:
        file: what a process touches.
        clock: another file of the same file system, which is touched: its times are compared, not those of machines.
    """
    seen = _touched(file)
    return seen is not None and _now(clock) - seen < STALE_SECONDS


def lives(file: Path, clock: Path) -> bool:
    """Wait until ``file`` is touched (True), or is gone or was not for :data:`STALE_SECONDS` (False); tells it."""
    seen = _touched(file)
    if may_live(file, clock):
        print(f"Waiting for a sign of life of another process, {STALE_SECONDS:.0f} s at most: {file}", flush=True)
    while seen is not None and _now(clock) - seen < STALE_SECONDS:
        time.sleep(POLL_SECONDS)
        now = _touched(file)
        if now not in (seen, None):
            return True
        seen = now
    return False


def _touched(file: Path) -> float | None:
    """When ``file`` was touched (s); None if it is gone. Opening it asks the server of a network file system."""
    try:
        with file.open("rb") as stream:
            return os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _now(file: Path) -> float:
    """The time (s) in the file system of ``file``."""
    os.utime(file)
    return file.stat().st_mtime
