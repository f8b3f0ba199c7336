"""How a worker process behaves towards its parent: it ends with it, even after SIGKILL, and leaves Ctrl-C to it.

Limit: workers of multiprocessing, by any start method; what they work on is not known here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from types import FrameType

LOOK_EVERY = 1.0  # seconds
GRACE = 30.0  # seconds for which a worker outlives SIGTERM, while its parent finishes its step and saves


def follow_parent() -> None:
    """End this worker soon after its parent is gone, and let the parent answer signals.

    Terminals send Ctrl-C, and batch systems SIGTERM, to all processes of a run at once; a parent that wants to finish
    its step needs its workers meanwhile. Nothing happens in a process that is no worker.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    threading.Thread(target=_end_with, args=(parent.sentinel, os.getppid()), daemon=True).start()


def _end_later(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(GRACE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def _end_with(sentinel: int, parent: int) -> None:
    # The sentinel alone is late among forked workers, which hold each other's open; under a fork server the process
    # above is not the parent.
    while not connection.wait([sentinel], LOOK_EVERY) and os.getppid() == parent:
        pass
    os._exit(1)
