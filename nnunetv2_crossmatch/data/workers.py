"""Worker processes that exit with their parent, even after SIGKILL, and ignore Ctrl-C.

Limit: workers of ``multiprocessing``, with any start method.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from types import FrameType

CHECK_SECONDS = 1.0
GRACE_SECONDS = 30.0  # time to live after SIGTERM, while the parent finishes its step and saves


def exit_with_parent() -> None:
    """Let this worker exit soon after its parent, and leave the handling of signals to the parent.

    Terminals send Ctrl-C, and batch systems SIGTERM, to all processes of a run at once; a parent that finishes its step
    still needs its workers. Does nothing in a process that is no worker.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_after_grace_period)
    threading.Thread(target=_exit_after_parent, args=(parent.sentinel, os.getppid()), daemon=True).start()


def _exit_after_grace_period(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(GRACE_SECONDS, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def _exit_after_parent(sentinel: int, parent: int) -> None:
    # Forked workers inherit each other's sentinels, which then close late, so the parent id is checked too. With a fork
    # server the parent id is that of the server.
    while not connection.wait([sentinel], CHECK_SECONDS) and os.getppid() == parent:
        pass
    os._exit(1)
