"""Voxel sizes that no scanner has, found before a case is resampled to them for hours or until the memory is full.

Limit: sizes of one image and, if it is known, the median of the labeled cases; which of them is right is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np

from nnunetv2_crossmatch.data.file_formats import nifti_header
from nnunetv2_crossmatch.errors import InputError, Problem

LARGEST_RATIO = 100
"""Of two voxel sizes in one data set, per axis. Slices of 0.5 mm and 10 mm occur together; mm and m do not."""


def check_voxel_size(file: Path, spacing: Sequence[float], median: Sequence[float] | None = None) -> None:
    """Check the voxel size of an image.

    Args:
        file: the image. Readers replace a voxel size of 0 or NaN in a NIfTI header by 1, so the header is read, too.
        spacing: voxel size as the reader gives it, mm, (z, y, x).
        median: voxel size of the labeled cases, mm, (z, y, x).

    Raises:
        InputError: a size is not finite or not positive, or differs from ``median`` by more than the factor
            :data:`LARGEST_RATIO`.
    """
    for sizes in (spacing, header_voxel_size(file)):
        if not all(isinstance(size, Real) and 0 < size < math.inf for size in sizes):  # a sidecar holds anything
            raise InputError(_problem(file, f"{_text(sizes)} in the header"))
    if median is not None and _ratio(spacing, median) > LARGEST_RATIO:
        raise InputError(_problem(file, f"{_text(spacing)}, but {_text(median)} is the median of the labeled cases"))


def header_voxel_size(file: Path) -> tuple[float, ...]:
    """Voxel size in the header of a NIfTI image, mm, (z, y, x); empty for other images."""
    header = nifti_header(file)
    if header is None:
        return ()
    axes = min(3, int(header["dim"][0]))
    return tuple(float(size) for size in header["pixdim"][axes:0:-1])


def _ratio(spacing: Sequence[float], median: Sequence[float]) -> float:
    """Largest ratio along an axis, of the larger size to the smaller one."""
    return float(np.exp(np.abs(np.log(spacing) - np.log(median)).max()))


def _problem(file: Path, detail: str) -> Problem:
    return Problem("impossible voxel size", file, detail, "mend the header, or remove the case")


def _text(sizes: Sequence[float]) -> str:
    return f"({', '.join(f'{size:g}' if isinstance(size, Real) else repr(size) for size in sizes)}) mm (z, y, x)"
