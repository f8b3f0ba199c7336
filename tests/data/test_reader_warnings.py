"""Warnings of readers: collected, told once per kind with a count and the first file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
import tifffile
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_crossmatch.data.reader_warnings import by_kind, collected_warnings


def disagreeing(folder: Path, name: str) -> Path:
    """A NIfTI image whose sform has other voxel sizes than its header."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.diag([1, 1, 3, 1]), 1)
    image.header["pixdim"][1:4] = 1
    nibabel.save(image, folder / name)
    return folder / name


def test_simpleitks_warnings_are_told_once_with_a_count(tmp_path: Path, capfd) -> None:
    files = [disagreeing(tmp_path, f"{name}.nii.gz") for name in "abc"]
    with collected_warnings() as found, ThreadPoolExecutor(2) as pool:
        list(pool.map(SimpleITK.ReadImage, files))
    lines = by_kind((text, files) for text in sorted(found))
    assert lines == [f"warning: the file has unexpected scales in sform (3 files, the first is {files[0]})"]
    assert capfd.readouterr().err == ""


def test_after_the_block_warnings_go_where_they_went_before(tmp_path: Path, capfd) -> None:
    file = disagreeing(tmp_path, "a.nii")
    with collected_warnings():
        pass
    SimpleITK.ReadImage(file)
    assert "unexpected scales" in capfd.readouterr().err


def test_a_tiff_without_its_spacing_file_is_told(tmp_path: Path, capsys) -> None:
    files = [tmp_path / f"{name}_0000.tif" for name in "ab"]
    found = []
    for file in files:
        tifffile.imwrite(file, np.zeros((3, 4, 5), np.uint8))
        with collected_warnings() as texts:
            Tiff3DIO().read_images([str(file)])
        found += [(text, [file]) for text in texts]
    assert by_kind(found) == [f"warning: no spacing file found for images the file (2 files, the first is {files[0]})"]
    assert capsys.readouterr().out == ""


def test_one_file_is_not_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.nii"
    assert by_kind([(f"{file} is odd", [file])]) == [f"warning: the file is odd (in {file})"]
