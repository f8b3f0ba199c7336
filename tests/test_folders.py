"""Writing: whole or not at all, on the disk before it gets its name, and whatever others do there."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from nnunetv2_crossmatch.data.raw_cases import group_by_case
from nnunetv2_crossmatch.dataset_conversion import Dataset501_LA
from nnunetv2_crossmatch.dataset_conversion.conversion import _find_cases
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.evaluate import segmentation_files
from nnunetv2_crossmatch.evaluation.score_files import files_written_together
from nnunetv2_crossmatch.folders import atomic_folder, atomic_write, flush_and_rename, raw_folder


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


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (".report.html.partial", ".scores.csv.partial", ".scores.csv.backup", "report.html"):
        (tmp_path / name).symlink_to(victim)
    (tmp_path / "scores.csv").write_text("before")
    with atomic_write(tmp_path / "report.html") as temporary:
        temporary.write_text("page")
    with files_written_together([tmp_path / "scores.csv"]) as (temporary,):
        temporary.write_text("scores")
    assert victim.read_text() == "mine"
    assert [(tmp_path / name).read_text() for name in ("report.html", "scores.csv")] == ["page", "scores"]


def test_a_link_in_the_place_of_a_lock_is_refused(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".folder.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="cannot lock"), atomic_folder(tmp_path / "folder"):
        pytest.fail("somebody else has it in his hands")
    assert (tmp_path / "victim").read_text() == "mine"


def test_two_writers_of_one_file_do_not_mix_their_bytes(tmp_path):
    with atomic_write(tmp_path / "file") as first, first.open("w") as stream:
        stream.write("A" * 10)
        with atomic_write(tmp_path / "file") as second:
            second.write_text("B" * 5)
        assert (tmp_path / "file").read_text() == "B" * 5
    assert (tmp_path / "file").read_text() == "A" * 10
    assert os.listdir(tmp_path) == ["file"]


def test_of_two_writers_of_one_folder_the_second_is_refused(tmp_path):
    with atomic_folder(tmp_path / "folder") as first:
        (first / "one").touch()
        with (
            pytest.raises(InputError, match=r"another process writes here in .*folder"),
            atomic_folder(tmp_path / "folder"),
        ):
            pytest.fail("it would take away what the first one has written")
        (first / "two").touch()
    assert sorted(os.listdir(tmp_path / "folder")) == ["one", "two"]
    with pytest.raises(InputError, match="already there"), atomic_folder(tmp_path / "folder"):
        pytest.fail("there is one")


def test_what_a_killed_run_left_is_removed_unless_it_is_another_machines(tmp_path):
    """The other machine may still write: some file systems do not pass locks on."""
    for owner in (".", f".{socket.gethostname()}.abcdefgh.", ".elsewhere.abcdefgh."):
        (tmp_path / f".folder{owner}partial").mkdir()
    with atomic_folder(tmp_path / "folder"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".folder.elsewhere.abcdefgh.partial", "folder"]


def test_others_may_read_what_they_could_read_before(tmp_path):
    """The temporary folder is private, what was in it is not."""
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.touch()
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "file").touch()
    (tmp_path / "plain folder").mkdir()
    modes = {
        path: (tmp_path / path).stat().st_mode for path in ("plain", "file", "folder/file", "folder", "plain folder")
    }
    assert modes["plain"] == modes["file"] == modes["folder/file"]
    assert modes["folder"] == modes["plain folder"]


FOREIGN = os.fsdecode(b"caf\xe9")  # "café" as Windows writes it


def image_named(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"no matter what: nothing is read")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        lambda folder: group_by_case(image_named(folder, f"{FOREIGN}_0000.nii.gz"), ".nii.gz"),
        lambda folder: segmentation_files(image_named(folder, f"{FOREIGN}.nii.gz"), ".nii.gz"),
        lambda folder: _find_cases(Dataset501_LA.DATASET, image_named(folder / FOREIGN, "lgemri.nrrd").parent, None),
        lambda folder: _find_cases(
            Dataset501_LA.DATASET, image_named(folder / FOREIGN / "a", "mri_norm2.h5").parent, None
        ),
    ],
    ids=["images", "predictions", "converter", "folder"],
)
def test_a_name_that_is_not_utf8_is_told_before_anything_is_read(tmp_path: Path, command) -> None:
    """ITK would end the process with exit code 134 and no word of ours."""
    with pytest.raises(InputError, match=r"file name not UTF-8 in .*caf\\xe9.*Fix: rename it"):
        command(tmp_path)


def test_a_root_folder_whose_name_is_not_utf8_is_told(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / FOREIGN).mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / FOREIGN))
    with pytest.raises(InputError, match="file name not UTF-8"):
        raw_folder()
