"""Errors that say something of a file's bytes, and those that do not."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import SimpleITK
from conftest import write_volume
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_crossmatch.data.case_preprocessing import read_and_check
from nnunetv2_crossmatch.data.manifest import CaseRecord, FileInfo, case_damage
from nnunetv2_crossmatch.data.raw_cases import RawCase
from nnunetv2_crossmatch.data.unlabeled_folder import UnlabeledFolder, up_to_date_cases
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, read_h5, read_nifti, read_nrrd
from nnunetv2_crossmatch.errors import InputError, NotReadError, system_reason, unread_reason
from nnunetv2_crossmatch.evaluation.segmentations import read_segmentation
from nnunetv2_crossmatch.training.record import read_record

SHORTAGES = [
    MemoryError(),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
]
ABOUT_BYTES = [
    gzip.BadGzipFile("no gzip"),
    OSError(errno.EINVAL, "Invalid argument"),
    ValueError("negative seek"),
    EOFError(),
]


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(errno.EIO, "no answer", "/a/file"), "no answer"), (OSError("words of a library"), "words of a library")],
)
def test_the_reason_is_the_systems_or_that_of_the_code_which_raised_the_error(error: OSError, told: str) -> None:
    assert system_reason(error) == told


@pytest.mark.parametrize("error", SHORTAGES, ids=repr)
def test_a_shortage_says_nothing_of_the_bytes(error: BaseException) -> None:
    assert unread_reason(error)


@pytest.mark.parametrize("error", ABOUT_BYTES, ids=repr)
def test_an_error_of_a_reader_may_be_about_the_bytes(error: BaseException) -> None:
    assert unread_reason(error) is None


def read_unlabeled(file: Path) -> object:
    plans = SimpleNamespace(image_reader_writer_class=SimpleITKIO)
    return read_and_check(SimpleNamespace(plans_manager=plans), RawCase("case", (file,)))


def test_manifest_record_and_cases_that_could_not_be_read_are_not_replaced(tmp_path: Path, monkeypatch) -> None:
    """A manifest that is damaged is written anew, with all of its cases; one that could not be read is not."""
    (tmp_path / "2d_unlabeled.json").write_text("{}")
    (tmp_path / "crossmatch_run.json").write_text("{}")
    (tmp_path / "case.pkl").write_bytes(b"x")
    unlabeled = UnlabeledFolder(tmp_path / "2d_unlabeled", "hash", "command")
    assert up_to_date_cases(unlabeled, {}).cases == {}
    open_file = Path.open

    def open_elsewhere(file: Path, *arguments, **options):
        if file.parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(file, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_elsewhere)
    known = CaseRecord({".pkl": FileInfo(1, 0)}, {})
    for read in (
        lambda: up_to_date_cases(unlabeled, {}),
        lambda: read_record(tmp_path),
        lambda: case_damage(tmp_path, "case", known),
    ):
        with pytest.raises(NotReadError, match="Permission denied; this says nothing about its content"):
            read()


def failing(error: BaseException):
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


READERS = {
    ".h5": (lambda file: read_h5(file, "xyz", Spacing((1, 1, 1), "given"), False), (h5py, "File")),
    ".nii.gz": (lambda file: read_nifti(file, None), (gzip, "decompress")),
    ".nrrd": (lambda file: read_nrrd(file, None), (SimpleITK, "ReadImage")),
    "_seg.nii.gz": (lambda file: read_segmentation(file, SimpleITKIO()), (SimpleITKIO, "read_seg")),
    "_0000.nii.gz": (read_unlabeled, (SimpleITKIO, "read_images")),
}


@pytest.mark.parametrize("error", SHORTAGES, ids=repr)
@pytest.mark.parametrize("ending", READERS)
def test_an_image_that_could_not_be_read_is_not_damaged(
    tmp_path: Path, ending: str, error: BaseException, monkeypatch
) -> None:
    file, (read, place) = tmp_path / f"image{ending}", READERS[ending]
    if ending == ".h5":
        h5py.File(file, "w")["image"] = np.zeros((2, 2, 2))
    else:
        write_volume(np.arange(8, dtype=np.float32).reshape(2, 2, 2), file)
    monkeypatch.setattr(*place, failing(error))
    with pytest.raises(InputError, match=r"file not read in .*nothing about its content"):
        read(file)
