"""Integrity check: truncated files are refused, intact files of any format pass."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from segmentation_folders import ball, write

from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.errors import InputError


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.tif"])
def test_an_intact_file_passes(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ball())
    check_file_integrity(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_nifti_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    file = tmp_path / name
    write(file, ball())
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(InputError, match="damaged file"):
        check_file_integrity(file)


def test_an_image_truncated_before_compression_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.nii", ball())
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:-100]))
    with pytest.raises(InputError, match=f"{len(content) - 100} of {len(content)} bytes are there"):
        check_file_integrity(tmp_path / "a.nii.gz")
