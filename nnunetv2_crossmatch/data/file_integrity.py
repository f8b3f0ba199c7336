"""Integrity check of image files: ITK reads a truncated NIfTI file without an error and fills it with zeros.

Limit: NIfTI and gzip files only.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nnunetv2_crossmatch.errors import InputError, Problem

CHUNK_BYTES = 1 << 20


def check_file_integrity(file: Path) -> None:
    """Check the checksum of a gzip file and the length of a NIfTI file.

    Raises:
        InputError: truncated, damaged, or of another format than its name says.
    """
    try:
        actual = decompressed_size(file) if file.suffix == ".gz" else file.stat().st_size
        expected = expected_size(file) if file.name.endswith((".nii", ".nii.gz")) else actual
    except (OSError, EOFError, zlib.error, ValueError, HeaderDataError, ImageFileError) as error:
        raise damaged_file_error(file, error) from error
    if actual < expected:
        raise damaged_file_error(file, f"{actual} of {expected} bytes are there")


def decompressed_size(file: Path) -> int:
    """Decompressed size of a gzip file in bytes; decompressing it also verifies its checksum."""
    size = 0
    with gzip.open(file) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            size += len(chunk)
    return size


def expected_size(file: Path) -> int:
    """Decompressed size in bytes that the header of a NIfTI file gives."""
    voxels: Any = nibabel.load(file).dataobj  # type: ignore[attr-defined]
    return voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize


def damaged_file_error(file: Path, reason: Exception | str) -> InputError:
    """Error for a file that cannot be read; of a long message only the last line, which names the reason."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return InputError(Problem("damaged file", file, lines[-1] if lines else repr(reason), "write or copy it again"))
