"""Checks of voxel values: finite, non-constant images and known label values.

Limit: arrays in memory, axes (x, y, z); ``reading`` checks files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunetv2_crossmatch.errors import Problem

VALUES_SHOWN = 8
MASK_VALUE = 255
NO_FOREGROUND = "label without foreground"


def image_problems(image: np.ndarray, where: Path) -> list[Problem]:
    """Problem of an image with non-finite voxels (count and first index) or of a constant image."""
    bad = ~np.isfinite(image) if image.dtype.kind == "f" else np.zeros(0, bool)
    if bad.any():
        place = tuple(int(index) for index in np.unravel_index(np.argmax(bad), bad.shape))
        detail = f"{int(bad.sum())} voxels are NaN or infinite, the first at (x, y, z) = {place}"
        return [Problem("image not finite", where, detail, "export or download the image again")]
    if image.min() == image.max():
        detail = f"every voxel is {image.flat[0]}"
        return [Problem("image without content", where, detail, "export or download the image again")]
    return []


def convert_image(image: np.ndarray) -> np.ndarray:
    """``image`` as it is stored: integers of 8 and 16 bits unchanged, every other type as float32."""
    if image.dtype.kind in "iu" and image.dtype.itemsize <= 2:
        return image
    return image.astype(np.float32)


def label_problems(label: np.ndarray, classes: int, where: Path) -> list[Problem]:
    """Problem of a label with values other than 0 to ``classes - 1``; with two classes {0, 255} is allowed, too."""
    label_uint8 = _to_uint8(label)
    if np.array_equal(label_uint8, label):
        counts = np.bincount(label_uint8.ravel(order="K"))
        values, counts = np.flatnonzero(counts), counts[counts > 0]
    else:
        values, counts = np.unique(label, return_counts=True)
    if set(values.tolist()) <= set(range(classes)) or _is_0_255_mask(values, classes):
        return []
    listed = [f"{value:g} ({count} voxels)" for value, count in zip(values, counts, strict=True)]
    ellipsis = ["..."] if len(listed) > VALUES_SHOWN else []
    detail = f"values {', '.join(listed[:VALUES_SHOWN] + ellipsis)}; expected 0 to {classes - 1}"
    return [Problem("label values unknown", where, detail, "map the values to the data set's own")]


def convert_label(label: np.ndarray, classes: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """``label`` as uint8 with the values 0 to ``classes - 1``, and notes (255 mapped to 1, no foreground)."""
    label_uint8 = _to_uint8(label)
    notes = []
    if classes == 2 and label_uint8.max() == MASK_VALUE:
        label_uint8 = (label_uint8 == MASK_VALUE).astype(np.uint8)
        notes.append("label value 255 mapped to 1")
    if not label_uint8.any():
        notes.append(NO_FOREGROUND)
    return label_uint8, tuple(notes)


def _is_0_255_mask(values: np.ndarray, classes: int) -> bool:
    return classes == 2 and set(values.tolist()) <= {0, MASK_VALUE}


def _to_uint8(label: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # values out of range are found by comparing with the original
        return label.astype(np.uint8)
