"""Writing: whole or not at all, and on the disk before it gets its name."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from nnunetv2_crossmatch.folders import atomic_folder, atomic_write, flush_and_rename


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Inodes of the files that were flushed to disk."""
    inodes: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.add(os.fstat(descriptor).st_ino))
    return inodes


def test_a_file_is_flushed_before_it_gets_its_name(tmp_path, flushed, monkeypatch):
    replace = Path.replace

    def only_flushed(source: Path, target: Path) -> Path:
        assert source.stat().st_ino in flushed
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", only_flushed)
    with atomic_write(tmp_path / "whole") as temporary:
        temporary.write_text("content")
    (tmp_path / "moved.part").write_text("content")
    flush_and_rename(tmp_path / "moved.part", tmp_path / "moved")
    assert (tmp_path / "whole").read_text() == (tmp_path / "moved").read_text() == "content"


def test_every_file_of_a_folder_is_flushed(tmp_path, flushed):
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "below").mkdir()
        files = [temporary / "one", temporary / "below" / "two"]
        for file in files:
            file.write_text("content")
    assert {file.stat().st_ino for file in (tmp_path / "folder").rglob("*") if file.is_file()} <= flushed


def test_a_failed_block_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("before")
    with suppress(RuntimeError), atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("after")
        raise RuntimeError
    with suppress(RuntimeError), atomic_folder(tmp_path / "folder"):
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
