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
from nnunetv2_crossmatch.data.raw_cases import RawCase
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, read_h5, read_nifti, read_nrrd
from nnunetv2_crossmatch.errors import InputError, unread_reason
from nnunetv2_crossmatch.evaluation.segmentations import read_segmentation

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


@pytest.mark.parametrize("error", SHORTAGES, ids=repr)
def test_a_shortage_says_nothing_of_the_bytes(error: BaseException) -> None:
    assert unread_reason(error)


@pytest.mark.parametrize("error", ABOUT_BYTES, ids=repr)
def test_an_error_of_a_reader_may_be_about_the_bytes(error: BaseException) -> None:
    assert unread_reason(error) is None


def read_unlabeled(file: Path) -> object:
    plans = SimpleNamespace(image_reader_writer_class=SimpleITKIO)
    return read_and_check(SimpleNamespace(plans_manager=plans), RawCase("case", (file,)))


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
    def fail(*arguments: object, **options: object) -> None:
        raise error

    file, (read, place) = tmp_path / f"image{ending}", READERS[ending]
    if ending == ".h5":
        h5py.File(file, "w")["image"] = np.zeros((2, 2, 2))
    else:
        write_volume(np.arange(8, dtype=np.float32).reshape(2, 2, 2), file)
    monkeypatch.setattr(*place, fail)
    with pytest.raises(InputError, match=r"file not read in .*nothing about its content"):
        read(file)
