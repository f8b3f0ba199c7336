"""Readers of files with arbitrary content: each returns a result or raises an ``InputError``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import blob_case, write_volume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.data.manifest import CaseRecord, FileInfo, Manifest, read_manifest, write_manifest
from nnunetv2_crossmatch.dataset_conversion.Dataset502_ACDC import find_challenge, patient_of
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, read_h5, read_nifti, read_nrrd
from nnunetv2_crossmatch.dataset_conversion.splits import read_splits
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint, newest_checkpoint, write_checkpoint
from nnunetv2_crossmatch.training.lock import lock_folder
from nnunetv2_crossmatch.training.record import FILE, RunRecord, read_record, write_record

SPACING = Spacing((1.0, 1.0, 1.0), "given")
fuzz = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=8)), min_size=1, max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def altered(content: bytes, changes: list[tuple[float, bytes]]) -> bytes:
    """``content`` with some bytes replaced; an empty replacement truncates it."""
    for place, replacement in changes:
        at = int(place * len(content))
        content = content[:at] + (replacement + content[at + len(replacement) :] if replacement else b"")
    return content


def volume(folder: Path, ending: str) -> Path:
    file = folder / f"whole{ending}"
    if not file.exists():
        write_volume(blob_case(0)[0][:6, :6, :6], file)
    return file


def write_h5(folder: Path) -> Path:
    file = folder / "whole.h5"
    with h5py.File(file, "w") as content:
        content["image"], content["label"] = np.ones((3, 4, 5), np.float32), np.ones((3, 4, 5), np.uint8)
    return file


def whole_checkpoint(folder: Path) -> Path:
    content = {"network_weights": {"w": torch.ones(4)}, "current_epoch": 1, "trainer_name": "x", "init_args": {}}
    write_checkpoint(content, folder / "whole.pth")
    return folder / "whole.pth"


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "h5": (write_h5, lambda file: read_h5(file, "xyz", SPACING, True)),
    "nifti": (lambda folder: volume(folder, ".nii.gz"), lambda file: read_nifti(file, None)),
    "nrrd": (lambda folder: volume(folder, ".nrrd"), lambda file: read_nrrd(file, None)),
    "intact": (lambda folder: volume(folder, ".nii"), check_file_integrity),
    "checkpoint": (whole_checkpoint, load_checkpoint),
}


@pytest.mark.parametrize("name", READERS)
@fuzz
@given(changes=edits)
def test_an_altered_file_is_read_or_refused_cleanly(tmp_path: Path, name: str, changes: list) -> None:
    make, read = READERS[name]
    whole = make(tmp_path)
    file = whole.with_name(f"altered{''.join(whole.suffixes)}")
    file.write_bytes(altered(whole.read_bytes(), changes))
    with suppress(InputError):
        read(file)


@fuzz
@given(changes=edits)
def test_a_nifti_altered_before_compression_is_read_or_refused_cleanly(tmp_path: Path, changes: list) -> None:
    """The checksum of the gzip stream is correct, the NIfTI header is not."""
    content = gzip.decompress(volume(tmp_path, ".nii.gz").read_bytes())
    file = tmp_path / "altered.nii.gz"
    file.write_bytes(gzip.compress(altered(content, changes), compresslevel=1))
    with suppress(InputError):
        read_nifti(file, None)


@fuzz
@given(changes=edits)
def test_an_altered_checkpoint_is_read_or_refused_cleanly(tmp_path: Path, changes: list) -> None:
    content = altered(whole_checkpoint(tmp_path).read_bytes(), changes)
    (tmp_path / "checkpoint_latest.pth").write_bytes(content)
    with suppress(InputError):
        newest_checkpoint(tmp_path, lambda line: None)


def splits(values_: object) -> str:
    return json.dumps({"train": values_, "val": ["a"], "labeled": values_})


@fuzz
@given(
    content=values.map(splits) | values.map(json.dumps) | st.text(max_size=40),
    number=st.none() | st.integers(-2, 3),
)
def test_a_splits_file_is_read_or_refused_cleanly(tmp_path: Path, content: str, number: int | None) -> None:
    (tmp_path / "splits.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with suppress(InputError):
        read_splits(tmp_path / "splits.json", number, patient_of)


@fuzz
@given(content=st.binary(max_size=60))
def test_a_list_file_is_read_or_refused_cleanly(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.list").write_bytes(content)
    (tmp_path / "splits.json").write_text('{"train": "train.list", "labeled": {"1": "train.list"}}')
    with suppress(InputError):
        read_splits(tmp_path / "splits.json", 1, patient_of)


@fuzz
@given(content=st.binary(max_size=60))
def test_an_info_cfg_is_read_or_refused_cleanly(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "patient001"
    place.mkdir(exist_ok=True)
    (place / "Info.cfg").write_bytes(content)
    with suppress(InputError):
        find_challenge(tmp_path)


@fuzz
@given(content=values.map(json.dumps) | st.text(max_size=40), changes=edits)
def test_manifest_and_record_are_read_or_refused_cleanly(tmp_path: Path, content: str, changes: list) -> None:
    stamps = {ending: FileInfo(1, 2) for ending in (".pkl", "_seg.b2nd", ".b2nd")}
    write_manifest(
        tmp_path / "whole.json", Manifest("hash", "0", {"a": CaseRecord(stamps, {"a.nii": FileInfo(1, 2, 3)})})
    )
    write_record(tmp_path, RunRecord(1, {}, {"settings": {}}))
    for file, read in ((tmp_path / "whole.json", lambda: read_manifest(tmp_path / "x.json", "again")),
                       (tmp_path / FILE, lambda: read_record(tmp_path))):  # fmt: skip
        target = tmp_path / (FILE if file.name == FILE else "x.json")
        for text in (content.encode(errors="surrogatepass"), altered(file.read_bytes(), changes)):
            target.write_bytes(text)
            with suppress(InputError):
                read()


@fuzz
@given(content=st.binary(max_size=40) | values.map(lambda value: json.dumps({"host": value, "pid": value}).encode()))
def test_the_lock_is_taken_with_any_content_of_the_file_about_its_last_owner(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".running.json").write_bytes(content)
    lock_folder(tmp_path).release()
