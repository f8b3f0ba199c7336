"""What the voxels of a case must hold: finite, varying image values and the data set's own label values.

Limit: looks at arrays in memory, axes (x, y, z); files are judged in ``reading``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunetv2_crossmatch.errors import Problem

VALUES_SHOWN = 8
FULL = 255
NO_FOREGROUND = "label without foreground"


def image_problems(image: np.ndarray, where: Path) -> list[Problem]:
    """Non-finite voxels (count and first place) or a constant image."""
    bad = ~np.isfinite(image) if image.dtype.kind == "f" else np.zeros(0, bool)
    if bad.any():
        place = tuple(int(index) for index in np.unravel_index(np.argmax(bad), bad.shape))
        detail = f"{int(bad.sum())} voxels are NaN or infinite, the first at (x, y, z) = {place}"
        return [Problem("image not finite", where, detail, "export or download the image again")]
    if image.min() == image.max():
        detail = f"every voxel is {image.flat[0]}"
        return [Problem("image without content", where, detail, "export or download the image again")]
    return []


def as_image(image: np.ndarray) -> np.ndarray:
    """``image`` in the type it is stored in: small integers as they are, everything else float32."""
    if image.dtype.kind in "iu" and image.dtype.itemsize <= 2:
        return image
    return image.astype(np.float32)


def label_problems(label: np.ndarray, classes: int, where: Path) -> list[Problem]:
    """Values other than 0 to ``classes - 1``, with their counts; with two classes 255 may stand for 1."""
    small = _as_bytes(label)
    if np.array_equal(small, label):
        counts = np.bincount(small.ravel(order="K"))
        values, counts = np.flatnonzero(counts), counts[counts > 0]
    else:
        values, counts = np.unique(label, return_counts=True)
    if set(values.tolist()) <= set(range(classes)) or _is_full_mask(values, classes):
        return []
    shown = [f"{value:g} ({count} voxels)" for value, count in zip(values, counts, strict=True)]
    dots = ["..."] if len(shown) > VALUES_SHOWN else []
    detail = f"values {', '.join(shown[:VALUES_SHOWN] + dots)}; expected 0 to {classes - 1}"
    return [Problem("label values unknown", where, detail, "map the values to the data set's own")]


def as_label(label: np.ndarray, classes: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """``label`` as uint8 with the values 0 to ``classes - 1``, and notes on what was changed or is remarkable."""
    small = _as_bytes(label)
    notes = []
    if classes == 2 and small.max() == FULL:
        small = (small == FULL).astype(np.uint8)
        notes.append("label value 255 mapped to 1")
    if not small.any():
        notes.append(NO_FOREGROUND)
    return small, tuple(notes)


def _is_full_mask(values: np.ndarray, classes: int) -> bool:
    return classes == 2 and set(values.tolist()) <= {0, FULL}


def _as_bytes(label: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # values out of range are found by comparing with the original
        return label.astype(np.uint8)
