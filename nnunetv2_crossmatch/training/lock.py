"""One training at a time in an output folder: a lock that ends with its process, and a record of its holder.

Limit: on file systems without locks, a file that names the process takes their place.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.folders import atomic_write

ORPHAN_SECONDS = 10.0  # seconds within which workers of a killed training are gone; they may hold its lock


def lock_folder(folder: Path) -> BaseFileLock:
    """Lock ``folder`` for this process until the result is released or the process ends, however it does.

    Raises:
        InputError: another process trains here; its host and number are told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".running.json"
    lock = FileLock(folder / ".running.lock", is_singleton=True)
    try:
        lock.acquire(timeout=ORPHAN_SECONDS if _has_ended(_read_holder(holder)) else 0)
    except Timeout:
        raise _locked_error(folder, _read_holder(holder)) from None
    record = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().isoformat(timespec="seconds")}
    with atomic_write(holder) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")
    return lock


def _locked_error(folder: Path, holder: dict[str, Any]) -> InputError:
    who = "process {pid} on {host}, since {since}".format_map({"pid": "?", "host": "?", "since": "?", **holder})
    remedy = "wait until it has ended, or stop it; for a second run choose another fold or trainer name"
    return InputError(Problem("another training runs", folder, who, remedy))


def _read_holder(holder: Path) -> dict[str, Any]:
    """Current or last holder of the lock; empty if unknown."""
    try:
        record = json.loads(holder.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # informs only; the lock itself decides
        return {}
    return record if isinstance(record, dict) else {}


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
