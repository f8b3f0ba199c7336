"""One training at a time in an output folder: a lock that ends with its process, and a record of its holder.

The record is touched while the holder lives, since some file systems do not pass locks on to other machines: see
``data.signs_of_life``, also for the limit.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from datetime import datetime
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from nnunetv2_crossmatch.data import signs_of_life
from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.json_files import read_json

HOLDER = ".running.json"
ORPHAN_SECONDS = 10.0  # seconds within which workers of a killed training are gone; they may hold its lock
BEATS = "sign_of_life_every_s"  # in the record; earlier versions gave none, and the lock alone decides about them


class RunLock:
    """A lock that is held, and the record of its holder; both go when it is released or the process ends.

    A killed process leaves its record behind.
    """

    def __init__(self, lock: BaseFileLock, holder: Path) -> None:
        self._lock, self._holder, self._id = lock, holder, uuid.uuid4().hex
        self._write()
        self._signs = signs_of_life.SignsOfLife(holder)
        self.release = Finalize(None, self._end, exitpriority=0)  # atexit would forget processes of multiprocessing

    def _write(self) -> None:
        since = datetime.now().isoformat(timespec="seconds")
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with atomic_write(self._holder) as temporary:
            record = {**who, "id": self._id, BEATS: signs_of_life.BEAT_SECONDS}
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def _end(self) -> None:
        self._signs.stop()
        with suppress(NotReadError):  # the file stays, and counts as dead soon
            if _read_holder(self._holder).get("id") == self._id:
                self._holder.unlink(missing_ok=True)
        self._lock.release()


def lock_folder(folder: Path) -> RunLock:
    """Lock ``folder`` for this process until the result is released or the process ends, however it does.

    Raises:
        InputError: another process trains here; its host and number are told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / HOLDER
    lock = FileLock(folder / ".running.lock", is_singleton=True)
    try:
        lock.acquire(timeout=ORPHAN_SECONDS if _has_ended(_read_holder(holder)) else 0)
    except Timeout:
        raise _locked_error(folder, _read_holder(holder)) from None
    try:
        _check_other_machine(folder, holder)
    except BaseException:
        lock.release()
        raise
    return RunLock(lock, holder)


def _check_other_machine(folder: Path, file: Path) -> None:
    """Wait until the holder on another machine is known to live or to be dead; raise if it lives."""
    holder = _read_holder(file)
    if BEATS not in holder or holder.get("host") == socket.gethostname():
        return
    if signs_of_life.lives(file, folder / ".running.lock"):
        raise _locked_error(folder, holder)
    if file.exists():
        seconds = signs_of_life.STALE_SECONDS
        print(f"{_who(holder)}, gave no sign of life for {seconds:.0f} s: its folder is taken over.", flush=True)


def _who(holder: dict[str, Any]) -> str:
    return "process {pid} on {host}, since {since}".format_map({"pid": "?", "host": "?", "since": "?", **holder})


def _locked_error(folder: Path, holder: dict[str, Any]) -> InputError:
    remedy = "wait until it has ended, or stop it; for a second run choose another fold or trainer name"
    stale = f"if it certainly is no more, remove {folder / HOLDER}"
    return InputError(Problem("another training runs", folder, _who(holder), f"{remedy}; {stale}"))


def _read_holder(holder: Path) -> dict[str, Any]:
    """Current or last holder of the lock; empty if there is none, or the file is damaged.

    Raises:
        NotReadError: the file could not be read: nobody knows whether the holder lives.
    """
    try:
        record: dict[str, Any] = read_json(holder, dict, "remove it")
    except NotReadError:
        raise
    except InputError:
        return {}
    return record


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
