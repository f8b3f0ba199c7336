"""Folders of small segmentations in the host's format, for the tests of the evaluation.

Limit: written with SimpleITK directly, so that a test can give each file any header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SPACING_XYZ = (1.0, 1.0, 2.0)


def ball(center: tuple[float, ...] = (6, 8, 8), radius: float = 5, shape: tuple[int, ...] = (12, 18, 16)) -> np.ndarray:
    """A ball of ones (z, y, x) in zeros, uint8."""
    distance = sum((axis - middle) ** 2 for axis, middle in zip(np.indices(shape), center, strict=True))
    return (distance <= radius**2).astype(np.uint8)


def write(file: Path, array: np.ndarray, spacing_xyz: tuple[float, ...] = SPACING_XYZ, **header: Any) -> None:
    """Write ``array`` with this spacing; ``origin`` and ``direction`` as SimpleITK takes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_xyz[: array.ndim])
    if "origin" in header:
        image.SetOrigin(header["origin"])
    if "direction" in header:
        image.SetDirection(header["direction"])
    sitk.WriteImage(image, str(file), True)


def write_dataset_json(folder: Path, labels: dict[str, Any] | None = None, file_ending: str = ".nii.gz") -> Path:
    """A ``dataset.json`` with these labels (default: one class, ``body``)."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"labels": labels or {"background": 0, "body": 1}, "file_ending": file_ending}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def three_cases(root: Path) -> tuple[Path, Path]:
    """Reference and prediction folders with cases a (equal), b (shifted by one voxel in x), c (smaller)."""
    reference, predictions = root / "Dataset001_Balls" / "labelsTs", root / "predictions"
    for case, predicted in {"a": ball(), "b": np.roll(ball(), 1, axis=2), "c": ball(radius=3)}.items():
        write(reference / f"{case}.nii.gz", ball())
        write(predictions / f"{case}.nii.gz", predicted)
    write_dataset_json(root / "Dataset001_Balls")
    return reference, predictions
