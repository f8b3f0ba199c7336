"""The mark of a training that reads unlabeled cases, where locks do not reach other machines: one plays the other."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from conftest import piped_output
from filelock import FileLock

from nnunetv2_crossmatch.data import signs_of_life, unlabeled_folder
from nnunetv2_crossmatch.data.unlabeled_folder import Reading, UnlabeledFolder, check_not_read, folder_lock
from nnunetv2_crossmatch.errors import InputError


@pytest.fixture
def unlabeled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UnlabeledFolder:
    """A folder with the case ``a``; signs of life are due every 0.05 s."""
    for name, seconds in (("BEAT_SECONDS", 0.05), ("STALE_SECONDS", 1.0), ("POLL_SECONDS", 0.05)):
        monkeypatch.setattr(signs_of_life, name, seconds)
    (tmp_path / "2d_unlabeled").mkdir()
    (tmp_path / "2d_unlabeled" / "a.pkl").touch()
    return UnlabeledFolder(tmp_path / "2d_unlabeled", "hash", "command")


def mark_of_another_machine(unlabeled: UnlabeledFolder, age_s: float = 0) -> Path:
    mark = unlabeled.folder.with_name(".2d_unlabeled.reader.elsewhere.7.lock")
    mark.touch()
    os.utime(mark, (time.time() - age_s, time.time() - age_s))
    return mark


def check(unlabeled: UnlabeledFolder) -> None:
    with folder_lock(unlabeled):
        check_not_read(unlabeled, keep=())


def test_cases_are_kept_for_a_training_that_lives_on_another_machine(unlabeled: UnlabeledFolder) -> None:
    mark, over = mark_of_another_machine(unlabeled), threading.Event()

    def live() -> None:
        while not over.wait(0.05):
            os.utime(mark)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 7 on elsewhere; 1 cases would be removed"):
            check(unlabeled)
    finally:
        over.set()
        thread.join()
    assert mark.exists()


@pytest.mark.parametrize(("age_s", "at_most_s"), [(0, 5), (100, 0.9)])
def test_a_training_that_died_on_another_machine_hinders_nobody(
    unlabeled: UnlabeledFolder, age_s: float, at_most_s: float
) -> None:
    """Known at once if its last sign of life is old enough."""
    mark, begun = mark_of_another_machine(unlabeled, age_s), time.monotonic()
    with piped_output() as told:
        check(unlabeled)
        assert told().count(f"Waiting for a sign of life of another process, 1 s at most: {mark}") == (age_s == 0)
    assert time.monotonic() - begun < at_most_s
    assert not mark.exists()


def test_a_reading_training_gives_signs_of_life(unlabeled: UnlabeledFolder) -> None:
    reading = Reading(unlabeled.folder)
    (mark,) = unlabeled.folder.parent.glob(".*.reader.*")
    first, deadline = mark.stat().st_mtime_ns, time.monotonic() + 10
    while mark.stat().st_mtime_ns == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reading.release()
    assert not mark.exists()


def test_a_mark_that_another_process_holds_is_not_waited_for(unlabeled: UnlabeledFolder) -> None:
    """On a shared folder another machine may have the same name, and its process the same number."""
    reading = Reading(unlabeled.folder)
    (mark,) = unlabeled.folder.parent.glob(".*.reader.*")
    reading.release()
    with FileLock(mark):
        thread = threading.Thread(target=lambda: Reading(unlabeled.folder).release(), daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive()
        assert mark.exists()


def test_a_training_that_ends_while_a_sign_of_life_is_waited_for_hinders_nobody(
    unlabeled: UnlabeledFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = mark_of_another_machine(unlabeled)
    monkeypatch.setattr(unlabeled_folder, "lives", lambda mark, clock: mark.unlink())
    check(unlabeled)
    assert not mark.exists()


def test_who_waits_for_another_preprocessing_is_told(unlabeled: UnlabeledFolder) -> None:
    waiting = threading.Thread(target=check, args=(unlabeled,), daemon=True)
    with piped_output() as told, folder_lock(unlabeled):
        waiting.start()
        deadline = time.monotonic() + 10
        while f"Waiting for another run that preprocesses {unlabeled.folder} ..." not in told():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert waiting.is_alive()
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_after_two_minutes_without_a_sign_of_life_a_process_counts_as_dead(tmp_path: Path) -> None:
    mark, clock = tmp_path / "mark", tmp_path / "clock"
    clock.touch()
    mark.touch()
    for age_s, alive in ((119.0, True), (120.5, False)):
        os.utime(mark, (time.time() - age_s, time.time() - age_s))
        assert signs_of_life.may_live(mark, clock) == alive
