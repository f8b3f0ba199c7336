"""Integrity check of image files before their voxels are used: checksums of compressed data, and lengths.

ITK and tifffile read truncated or damaged files without an error, partly as zeros. The content tells the format, since
the readers accept other endings, too. Limit: what the readers notice themselves is left to them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunetv2_crossmatch.data.file_formats import check_content
from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem, file_not_read, unread_reason

READ_ERRORS = (
    OSError, EOFError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AssertionError, MemoryError,
)  # fmt: skip
FORMAT_ERRORS = (zlib.error, struct.error, HeaderDataError, ImageFileError, WrapStructError)


def check_file_integrity(file: Path) -> None:
    """Check the checksums and the length of an image file, and of the file that an .mhd header names.

    Raises:
        InputError: the file is truncated or damaged, or its voxels are in a file outside its folder.
        NotReadError: it could not be read.
    """
    with reader_errors_told(file):
        if not file.is_file() and file.exists():
            raise InputError(Problem("not a file", file, "it is a folder, a pipe or a device", "remove it"))
        check_content(file)


@contextmanager
def reader_errors_told(file: Path) -> Iterator[None]:
    """Turn what readers of ``file`` raise into the error of a file that is damaged, or of one that could not be read.

    Raises:
        InputError: a reader failed.
    """
    try:
        yield
    except (*READ_ERRORS, *FORMAT_ERRORS) as error:
        is_incomplete = isinstance(error, FileNotFoundError) and file.exists()  # an .mhd without its voxels
        if not is_incomplete and (reason := unread_reason(error, file)):
            raise NotReadError(file_not_read(file, reason)) from error
        raise damaged_file_error(file, error) from error


def damaged_file_error(file: Path, reason: Exception | str) -> InputError:
    """Error for a file that cannot be read; of a long message only the last line, which names the reason."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return InputError(Problem("damaged file", file, lines[-1] if lines else repr(reason), "write or copy it again"))
