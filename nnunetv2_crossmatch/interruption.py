"""SIGTERM and SIGINT as a wish to stop: it waits until the step is done and the state is saved.

Limit: takes the wish; saving and leaving are the trainer's. In other threads than the main one it does nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Catches the two signals inside :meth:`caught`.

    Attributes:
        deferring: whether a first signal waits; otherwise, and with the second one, the process ends at once.
        wish: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.deferring = False
        self.wish: signal.Signals | None = None

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

    def _take(self, number: int, frame: FrameType | None) -> None:
        at_once = self.wish is not None or not self.deferring
        self.wish = signal.Signals(number)
        if at_once:
            raise SystemExit(self.exit_code)
