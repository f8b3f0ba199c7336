"""Whether an image file is whole: ITK fills the rest of a NIfTI file that was cut off with zeros and says nothing.

Limit: NIfTI and gzip files, which fail silently; the readers of the other formats complain themselves.
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

READ_BYTES = 1 << 20


def check_intact(file: Path) -> None:
    """Refuse a gzip file with a wrong checksum, and a NIfTI file that is shorter than its header promises.

    Raises:
        InputError: cut off, damaged, or not what the name says.
    """
    try:
        stored = unpacked_size(file) if file.suffix == ".gz" else file.stat().st_size
        promised = promised_size(file) if file.name.endswith((".nii", ".nii.gz")) else stored
    except (OSError, EOFError, zlib.error, ValueError, HeaderDataError, ImageFileError) as error:
        raise damaged(file, error) from error
    if stored < promised:
        raise damaged(file, f"{stored} of {promised} bytes are there")


def unpacked_size(file: Path) -> int:
    """Length of a gzip file's content in bytes; reading to the end also verifies its checksum."""
    size = 0
    with gzip.open(file) as stream:
        while chunk := stream.read(READ_BYTES):
            size += len(chunk)
    return size


def promised_size(file: Path) -> int:
    """Length in bytes, unpacked, that a NIfTI file must have by its own header."""
    voxels: Any = nibabel.load(file).dataobj  # type: ignore[attr-defined]
    return voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize


def damaged(file: Path, why: Exception | str) -> InputError:
    """The error for a file that cannot be read; of a reader's long message the last line, which holds the reason."""
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    return InputError(Problem("damaged file", file, lines[-1] if lines else repr(why), "write or copy it again"))
