"""SIGTERM and SIGINT as a request to stop, which waits until the step is done and the state is saved.

Limit: receives signals; the trainer saves and exits. In other threads than the main one it does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_SECONDS = 5.0  # seconds within which launchers and batch systems pass a signal on that its process got already
GRACE_SECONDS = 60.0  # seconds for which a process that cannot save by itself outlives the signal


class StopSignals:
    """Catches the two signals inside :meth:`handled`.

    Attributes:
        deferring: whether a first signal waits; otherwise, and with a second one that is no echo, the process ends at
            once.
        wish: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.deferring = False
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._exiting = False

    @property
    def exit_code(self) -> int:
        """Exit code by shell convention: 143 or 130; 0 without a signal."""
        return 0 if self.received is None else 128 + self.received

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals inside the block; the previous handlers are restored afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._receive) or signal.SIG_DFL for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def exit_after_grace_period(self) -> None:
        """End the process after :data:`GRACE_SECONDS`, even if it waits for a process that has ended."""
        if not self._exiting:
            self._exiting = True
            timer = threading.Timer(GRACE_SECONDS, os._exit, (self.exit_code,))
            timer.daemon = True
            timer.start()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and time.monotonic() - self._received_at >= REPEAT_SECONDS
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        if again or not self.deferring:
            raise SystemExit(self.exit_code)
