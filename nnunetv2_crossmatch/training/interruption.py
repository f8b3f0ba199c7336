"""SIGTERM and SIGINT as a wish to stop: it waits until the step is done and the state is saved.

Limit: takes the wish; saving and leaving are the trainer's. In other threads than the main one it does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO = 5.0  # seconds within which launchers and batch systems pass a signal on that its process got already
GRACE = 60.0  # seconds for which a process that cannot save by itself outlives the signal


class Interruption:
    """Catches the two signals inside :meth:`caught`.

    Attributes:
        deferring: whether a first signal waits; otherwise, and with a second one that is no echo, the process ends at
            once.
        wish: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.deferring = False
        self.wish: signal.Signals | None = None
        self._came = 0.0
        self._leaving = False

    @property
    def exit_code(self) -> int:
        """What shells expect after the signal: 143 or 130; 0 if there was none."""
        return 0 if self.wish is None else 128 + self.wish

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take the signals inside the block; whoever took them before has them afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._take) or signal.SIG_DFL for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def leave_soon(self) -> None:
        """End the process after :data:`GRACE` seconds, even if it then waits for one that is gone."""
        if not self._leaving:
            self._leaving = True
            timer = threading.Timer(GRACE, os._exit, (self.exit_code,))
            timer.daemon = True
            timer.start()

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self.wish is not None and time.monotonic() - self._came >= ECHO
        if self.wish is None:
            self.wish, self._came = signal.Signals(number), time.monotonic()
        if again or not self.deferring:
            raise SystemExit(self.exit_code)
