"""Readers for the files of published data sets: HDF5, NIfTI and NRRD files to arrays with geometry.

Limit: checks files (damaged, other keys, other shape); ``checks`` checks voxel values.

Arrays have the axes (x, y, z); the affine maps voxel indices to millimetres, right-anterior-superior (RAS).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import SimpleITK
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunetv2_crossmatch.data.file_formats import is_nifti
from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.dataset_conversion.alignment import SPACING_TOLERANCE_MM, align_label, spacing_notes
from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem, file_not_read, system_reason, unread_reason

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
RIGHT_ANGLE_TOLERANCE = 1e-3
LARGEST_RATIO = 1100
"""More than deflate can compress."""
SMALL_BYTES = 1 << 30
NRRD_SPACE = "NRRD_space"
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError, zlib.error)
NIFTI_READ_ERRORS = (*READ_ERRORS, HeaderDataError, ImageFileError, WrapStructError)
NOMINAL_NOTE = "voxel size unknown: a nominal one is recorded, lengths in mm mean nothing (--spacing)"


@dataclass(frozen=True)
class Spacing:
    """Voxel size in mm, axes (x, y, z), and its source.

    ``source`` is ``header`` (of the image), ``published`` (documentation of the data set), ``given`` (by the user) or
    ``nominal`` (unknown: lengths in mm are not valid).
    """

    xyz_mm: tuple[float, float, float]
    source: str


@dataclass(frozen=True)
class Volume:
    """One image, its label (same shape) if requested, and their geometry; ``notes`` go into the conversion record."""

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray
    spacing: Spacing
    notes: tuple[str, ...] = ()


def read_h5(file: Path, axes: str, spacing: Spacing, with_label: bool) -> Volume:
    """Volume from the data sets ``image`` and ``label`` of an HDF5 file, which contains no geometry.

    Args:
        file: HDF5 file.
        axes: axis order in the file, ``xyz`` or ``zyx``.
        spacing: voxel size to assume; the direction is the identity in ITK's LPS convention.
        with_label: read ``label``, too.

    Raises:
        InputError: not HDF5, damaged, a data set is missing or not numeric, or shapes differ.
    """
    names = ("image", "label") if with_label else ("image",)
    arrays = _read_h5_arrays(file, names)
    image, label = arrays[0], arrays[1] if with_label else None
    check_shapes(image, label, file)
    order = [axes.index(axis) for axis in "xyz"]
    affine = LPS_TO_RAS @ np.diag([*spacing.xyz_mm, 1.0])
    notes = (NOMINAL_NOTE,) if spacing.source == "nominal" else ()
    return Volume(image.transpose(order), None if label is None else label.transpose(order), affine, spacing, notes)


def read_nifti(image_file: Path, label_file: Path | None) -> Volume:
    """Volume from ``.nii.gz`` files. Geometry: the image's pixdim, and its qform, or its sform where it has no qform.

    A label with other axes is brought to those of the image; one whose header gives no position is taken as it lies.

    Raises:
        InputError: damaged (the checksum of the gzip stream is verified), no NIfTI, shapes differ, an impossible voxel
            size or position, or the label lies elsewhere than the image.
    """
    image, header = _load_nifti(image_file)
    check_shapes(image, None, image_file)
    spacing = Spacing(_voxel_size(header, image_file), "header")
    notes = []
    sform = header.get_sform(coded=True)[0]
    if sform is not None and _differ(nibabel.affines.voxel_sizes(sform), spacing.xyz_mm):
        notes.append("sform and pixdim give different voxel sizes: pixdim is used")
    affine, label = _nifti_affine(header, image_file), None
    if label_file is not None:
        label, label_header = _load_nifti(label_file)
        check_shapes(label, None, label_file)
        positions = _has_position(header) and _has_position(label_header)
        label, more = _on_image(label, _nifti_affine(label_header, label_file), affine, positions, label_file)
        notes += more
        check_shapes(image, label, label_file)
    return Volume(image, label, affine, spacing, tuple(notes))


def read_nrrd(image_file: Path, label_file: Path | None) -> Volume:
    """Volume from NRRD files; geometry from the image's header.

    A label with other axes is brought to those of the image; one whose header names no space is taken as it lies.

    Raises:
        InputError: damaged, no NRRD, shapes differ, or the label lies elsewhere than the image.
    """
    itk_image = _load_nrrd(image_file)
    image, affine, label = _xyz_array(itk_image), _nrrd_affine(itk_image), None
    notes: tuple[str, ...] = ()
    check_shapes(image, None, image_file)
    if label_file is not None:
        itk_label = _load_nrrd(label_file)
        positions = itk_image.HasMetaDataKey(NRRD_SPACE) and itk_label.HasMetaDataKey(NRRD_SPACE)
        label, notes = _on_image(_xyz_array(itk_label), _nrrd_affine(itk_label), affine, positions, label_file)
        check_shapes(image, label, label_file)
    return Volume(image, label, affine, Spacing(itk_image.GetSpacing(), "header"), notes)


def _on_image(
    label: np.ndarray, label_affine: np.ndarray, affine: np.ndarray, positions: bool, file: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The label of ``file`` with the axes of its image, if the headers give ``positions``; and notes."""
    return align_label(label, label_affine, affine, file) if positions else (label, spacing_notes(label_affine, affine))


def check_shapes(image: np.ndarray, label: np.ndarray | None, where: Path) -> None:
    """Raise an :class:`InputError` unless the image is a non-empty 3-D array of numbers and the label has its shape."""
    fix = "expected two 3-D arrays of one shape: convert or download the case again"
    shapes = f"image {image.shape}" + ("" if label is None else f", label {label.shape}")
    if image.ndim != 3 or 0 in image.shape or (label is not None and label.shape != image.shape):
        raise InputError(Problem("shapes do not fit", where, shapes, fix))
    wrong_types = [array.dtype for array in (image, label) if array is not None and array.dtype.kind not in "biuf"]
    if wrong_types:
        raise InputError(Problem("voxels are not numbers", where, f"type {wrong_types[0]}", "convert the case again"))


def _differ(first: Any, second: Any) -> bool:
    return not np.allclose(first, second, rtol=0, atol=SPACING_TOLERANCE_MM)


def _check_is_data(file: Path) -> None:
    """Raise an :class:`InputError` for the result of a failed download: empty file, Git LFS pointer, web page."""
    try:
        with file.open("rb") as stream:
            start = stream.read(512).lstrip().lower()
    except OSError as error:
        raise NotReadError(file_not_read(file, system_reason(error))) from error
    if not start:
        raise InputError(Problem("empty file", file, "it holds no data", "download it again"))
    if start.startswith(b"version https://git-lfs"):
        raise InputError(Problem("pointer instead of data", file, "this is a Git LFS pointer", "git lfs pull"))
    if start.startswith(b"<") and (b"<html" in start or b"<!doctype html" in start):
        detail = "this is an HTML page, perhaps a log-in or error page"
        raise InputError(Problem("web page instead of data", file, detail, "download it again, logged in"))


def _damaged_file_error(file: Path, error: Exception) -> InputError:
    if reason := unread_reason(error, file):
        return NotReadError(file_not_read(file, reason))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return InputError(Problem("damaged file", file, lines[-1] if lines else repr(error), "download it again"))


def _read_h5_arrays(file: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    _check_is_data(file)
    try:
        with h5py.File(file, "r", locking="best-effort") as content:
            missing = [name for name in names if not isinstance(content.get(name), h5py.Dataset)]
            if missing:
                detail = f"no {' and no '.join(missing)}; keys found: {', '.join(content) or 'none'}"
                fix = f"store the arrays as {' and '.join(names)}"
                if missing == ["label"]:
                    fix += ', or put the case into the "unlabeled" list (--splits FILE)'
                raise InputError(Problem("keys missing", file, detail, fix))
            return [_read_h5_array(content[name], file) for name in names]
    except READ_ERRORS as error:
        raise _damaged_file_error(file, error) from error


def _read_h5_array(dataset: h5py.Dataset, file: Path) -> np.ndarray:
    """Array of a data set whose values are in the file itself, not in another file that it names."""
    kinds = {
        "an external link": Path(dataset.file.filename) != file,
        "external storage": dataset.external is not None,
        "a virtual data set": dataset.is_virtual,
    }
    if used := [kind for kind, is_used in kinds.items() if is_used]:
        fix = "store the array in the file itself"
        raise InputError(Problem("voxels in another file", file, f"{dataset.name} is {used[0]}", fix))
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > max(LARGEST_RATIO * stored, SMALL_BYTES):
        raise ValueError(f"{stored} bytes are said to hold {dataset.nbytes}")  # memory would be full before it is read
    return np.asarray(dataset[()])


def _load_nifti(file: Path) -> tuple[np.ndarray, nibabel.Nifti1Header]:
    _check_is_data(file)
    try:
        content = file.read_bytes()
        is_plain = is_nifti(content)  # nnU-Net reads an uncompressed image named .nii.gz, too
        image = nibabel.Nifti1Image.from_bytes(content if is_plain else gzip.decompress(content))
        return np.asanyarray(image.dataobj), image.header
    except NIFTI_READ_ERRORS as error:
        raise _damaged_file_error(file, error) from error


def _voxel_size(header: nibabel.Nifti1Header, file: Path) -> tuple[float, float, float]:
    x, y, z = (float(size) for size in header.get_zooms()[:3])
    if not (np.isfinite([x, y, z]).all() and min(x, y, z) > 0):
        raise InputError(Problem("impossible voxel size", file, f"pixdim {x, y, z} mm", "download it again"))
    return x, y, z


def _has_position(header: nibabel.Nifti1Header) -> bool:
    return bool(header["qform_code"] > 0 or header["sform_code"] > 0)


def _nifti_affine(header: nibabel.Nifti1Header, file: Path) -> np.ndarray:
    """The qform; where it is not coded and the sform is, the sform with the voxel size in pixdim."""
    from_sform = header["qform_code"] <= 0 < header["sform_code"]
    try:
        affine = header.get_sform() if from_sform else header.get_qform()
    except NIFTI_READ_ERRORS as error:
        raise _damaged_file_error(file, error) from error
    sizes = nibabel.affines.voxel_sizes(affine)
    if not np.isfinite(affine).all() or not sizes.all():
        raise InputError(Problem("impossible position", file, "qform or sform is not finite", "download it again"))
    if from_sform:
        directions = affine[:3, :3] / sizes
        if not np.allclose(directions.T @ directions, np.eye(3), rtol=0, atol=RIGHT_ANGLE_TOLERANCE):
            detail, fix = "the axes of its sform are not at right angles", "resample it onto a grid with right angles"
            raise InputError(Problem("impossible position", file, detail, fix))
        affine[:3, :3] = directions * _voxel_size(header, file)
    return affine


def _load_nrrd(file: Path) -> SimpleITK.Image:
    _check_is_data(file)
    check_file_integrity(file)
    try:
        image = SimpleITK.ReadImage(file, imageIO="NrrdImageIO")
    except READ_ERRORS as error:
        raise _damaged_file_error(file, error) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        detail = f"{image.GetDimension()} axes, {image.GetNumberOfComponentsPerPixel()} values per voxel"
        raise InputError(Problem("not a 3-D image", file, detail, "download it again"))
    return image


def _nrrd_affine(itk_image: SimpleITK.Image) -> np.ndarray:
    affine, spacing = np.eye(4), itk_image.GetSpacing()
    affine[:3, :3] = np.array(itk_image.GetDirection()).reshape(3, 3) * spacing
    affine[:3, 3] = itk_image.GetOrigin()
    return LPS_TO_RAS @ affine


def _xyz_array(image: SimpleITK.Image) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
