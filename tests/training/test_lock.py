"""The lock of an output folder where it is not passed on to other machines: two lock domains, played by one."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import piped_output

from nnunetv2_crossmatch.data import signs_of_life
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.training import lock as lock_module
from nnunetv2_crossmatch.training.lock import lock_folder


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_SECONDS", 0.05), ("STALE_SECONDS", 2.0), ("POLL_SECONDS", 0.05)):
        monkeypatch.setattr(signs_of_life, name, seconds)


def held_elsewhere(folder: Path, **more: object) -> Path:
    """What a training on another machine leaves in ``folder``, whose lock is not known here."""
    holder = folder / ".running.json"
    holder.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "today", **more}))
    return holder


def test_the_record_shows_signs_of_life_and_goes_with_the_lock(tmp_path: Path) -> None:
    lock, holder = lock_folder(tmp_path), tmp_path / ".running.json"
    first = holder.stat().st_mtime_ns
    deadline = time.monotonic() + 10
    while holder.stat().st_mtime_ns == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()
    assert not holder.exists()


def hold(folder: Path) -> None:
    lock_folder(folder)
    assert (folder / ".running.json").exists()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_record_goes_with_a_process_of_multiprocessing(tmp_path: Path, method: str) -> None:
    """As those are that the host starts for several GPUs."""
    process = multiprocessing.get_context(method).Process(target=hold, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not (tmp_path / ".running.json").exists()


def test_a_training_that_lives_on_another_machine_is_not_joined(tmp_path: Path) -> None:
    holder, over = held_elsewhere(tmp_path, sign_of_life_every_s=20), threading.Event()

    def live() -> None:
        while not over.wait(0.1):
            os.utime(holder)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"process 7 on elsewhere.*remove .*/\.running\.json"):
            lock_folder(tmp_path)
    finally:
        over.set()
        thread.join()
    assert "elsewhere" in holder.read_text()


@pytest.mark.parametrize("age_s", [0, 100])
def test_a_training_that_died_on_another_machine_is_followed(tmp_path: Path, age_s: float, monkeypatch) -> None:
    """At once, or as soon as it has given no sign of life for long enough; what is waited for is told before."""
    holder = held_elsewhere(tmp_path, sign_of_life_every_s=20)
    os.utime(holder, (time.time() - age_s, time.time() - age_s))
    seen, sleep = [], time.sleep
    with piped_output() as told:
        waiting = SimpleNamespace(sleep=lambda seconds: (seen.append(told()), sleep(seconds)))
        monkeypatch.setattr(signs_of_life, "time", waiting)
        lock_folder(tmp_path).release()
        assert "process 7 on elsewhere, since today, gave no sign of life" in told()
        assert ("Waiting for a sign of life of another process" in told()) == (age_s == 0)
    assert bool(seen) == (age_s == 0)
    assert all("Waiting for a sign of life of another process" in text for text in seen)


def test_a_record_of_an_earlier_version_does_not_hinder(tmp_path: Path) -> None:
    """It was never removed, and had no signs of life."""
    held_elsewhere(tmp_path)
    begun = time.monotonic()
    lock_folder(tmp_path).release()
    assert time.monotonic() - begun < 1


def test_a_record_that_somebody_removes_while_it_ends_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, read = lock_folder(tmp_path), lock_module._read_holder

    def read_last(holder: Path) -> dict[str, object]:
        record = read(holder)
        holder.unlink()
        return record

    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "_read_holder", read_last)
        held.release()
    lock_folder(tmp_path).release()
