"""Integrity check of image files before their voxels are used: checksums of compressed data, and lengths.

ITK and tifffile read truncated or damaged files without an error, partly as zeros. The content tells the format, since
the readers accept other endings, too. Limit: what the readers notice themselves is left to them.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunetv2_crossmatch.data.file_formats import check_content
from nnunetv2_crossmatch.errors import InputError, Problem

READ_ERRORS = (OSError, EOFError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, MemoryError)
FORMAT_ERRORS = (zlib.error, struct.error, HeaderDataError, ImageFileError, WrapStructError)


def check_file_integrity(file: Path) -> None:
    """Check the checksums and the length of an image file, and of the file that an .mhd header names.

    Raises:
        InputError: the file is truncated or damaged, or its voxels are in a file outside its folder.
    """
    try:
        check_content(file)
    except (*READ_ERRORS, *FORMAT_ERRORS) as error:
        raise damaged_file_error(file, error) from error


def damaged_file_error(file: Path, reason: Exception | str) -> InputError:
    """Error for a file that cannot be read; of a long message only the last line, which names the reason."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return InputError(Problem("damaged file", file, lines[-1] if lines else repr(reason), "write or copy it again"))
