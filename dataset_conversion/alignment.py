"""A label whose array does not lie as that of its image: brought there exactly, or refused.

Limit: axes that are swapped or mirrored; nothing is interpolated. Affines map voxel indices to millimetres.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel
import numpy as np

from nnunetv2_crossmatch.errors import InputError, Problem

TOLERANCE_VOXELS = 0.5  # of every corner; what is more is no rounding of a header
SPACING_TOLERANCE_MM = 1e-3
SPACING_NOTE = "image and label give different voxel sizes: the image's is used"
REORIENTED_NOTE = "label stored with other axes than its image: brought to those of the image"


def align_label(
    label: np.ndarray, label_affine: np.ndarray, affine: np.ndarray, file: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """``label`` with the axes of its image, and notes if they or the voxel sizes were others.

    Where the voxel sizes differ, the image's are taken for both.

    Args:
        label: array (x, y, z) in ``file``.
        label_affine: of the label, invertible.
        affine: of the image, invertible.
        file: of the label, for the error.

    Raises:
        InputError: it lies elsewhere than its image, by more than half a voxel.
    """
    steps = _directions(affine).T @ _directions(label_affine)  # row: axis of the image, column: axis of the label
    axes = np.argmax(np.abs(steps), axis=0)
    flips = np.sign(steps[axes, range(3)])
    if sorted(axes) != [0, 1, 2]:
        raise _elsewhere(file, "its axes are turned against those of the image")
    orientation = np.column_stack([axes, flips])
    aligned = nibabel.orientations.apply_orientation(label, orientation)
    placed = label_affine @ nibabel.orientations.inv_ornt_aff(orientation, label.shape)
    notes = spacing_notes(placed, affine)
    placed[:3, :3] = _directions(placed) * nibabel.affines.voxel_sizes(affine)
    shift = _largest_shift(np.linalg.inv(affine) @ placed, aligned.shape)
    if shift > TOLERANCE_VOXELS:
        raise _elsewhere(file, f"up to {shift:.1f} voxels away from its image")
    if np.array_equal(orientation, [[0, 1], [1, 1], [2, 1]]):
        return label, notes
    return np.ascontiguousarray(aligned), (*notes, REORIENTED_NOTE)


def spacing_notes(label_affine: np.ndarray, affine: np.ndarray) -> tuple[str, ...]:
    """A note if the voxel sizes of a label and its image, whose axes are the same, differ by more than a rounding."""
    own, image = nibabel.affines.voxel_sizes(label_affine), nibabel.affines.voxel_sizes(affine)
    return () if np.allclose(own, image, rtol=0, atol=SPACING_TOLERANCE_MM) else (SPACING_NOTE,)


def _directions(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / nibabel.affines.voxel_sizes(affine)


def _largest_shift(mapping: np.ndarray, shape: tuple[int, ...]) -> float:
    """By how many voxels ``mapping``, from indices to indices, moves a corner of an array of this ``shape`` at most."""
    corners = np.array(list(product(*((0, length - 1) for length in shape))))
    return float(np.abs(nibabel.affines.apply_affine(mapping, corners) - corners).max())


def _elsewhere(file: Path, detail: str) -> InputError:
    fix = "resample it onto its image; or give it the header of its image, if its voxels lie as those do"
    return InputError(Problem("label lies elsewhere", file, detail, fix))
