"""Writers of generated folders in the layouts of the published data sets, a few kilobytes per case.

Limit: ellipsoids in noise.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import SimpleITK

SHAPE_XYZ = (20, 16, 8)
ACDC_ZOOMS_XYZ = (1.5, 1.5, 8.0)


def case_arrays(seed: int, classes: int = 2, shape: tuple[int, int, int] = SHAPE_XYZ) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 and label uint8, axes (x, y, z): nested ellipsoids, one per class, in noise; all axes differ."""
    grid = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    radius = np.sqrt((((grid - (0.4, 0.5, 0.6)) / (0.35, 0.4, 0.45)) ** 2).sum(-1))
    label = np.clip(np.ceil((1 - radius) * (classes - 1)), 0, classes - 1).astype(np.uint8)
    noise = np.random.default_rng(seed).normal(size=shape) * 0.1
    return (label + noise).astype(np.float32), label


def write_h5(file: Path, **arrays: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        for name, array in arrays.items():
            content.create_dataset(name, data=array, compression="gzip")
    return file


def write_la_h5(folder: Path, cases: Iterable[str], shape: tuple[int, int, int] = SHAPE_XYZ) -> Path:
    """``<case>/mri_norm2.h5``, axes (x, y, z)."""
    for seed, case in enumerate(cases):
        image, label = case_arrays(seed, shape=shape)
        write_h5(folder / case / "mri_norm2.h5", image=image, label=label)
    return folder


def write_la_challenge(folder: Path, cases: Iterable[str], with_label: bool = True) -> Path:
    """``<case>/lgemri.nrrd`` (uint8) and ``laendo.nrrd`` with the values 0 and 255."""
    for seed, case in enumerate(cases):
        image, label = case_arrays(seed)
        (folder / case).mkdir(parents=True)
        write_nrrd(folder / case / "lgemri.nrrd", (image * 50 + 100).astype(np.uint8))
        if with_label:
            write_nrrd(folder / case / "laendo.nrrd", label * 255)
    return folder


def write_nrrd(file: Path, array_xyz: np.ndarray) -> None:
    image = SimpleITK.GetImageFromArray(array_xyz.transpose(2, 1, 0))
    image.SetSpacing((0.625, 0.625, 1.25))
    image.SetOrigin((-10.0, 20.0, 30.0))
    SimpleITK.WriteImage(image, file, useCompression=True)


def write_acdc_h5(folder: Path, patients: Iterable[str], frames: Iterable[int] = (1, 2)) -> Path:
    """``patientXXX_frameYY.h5``, axes (z, y, x), float64 images."""
    for number, patient in enumerate(patients):
        for frame in frames:
            image, label = case_arrays(100 * number + frame, classes=4)
            file = folder / f"{patient}_frame{frame:02d}.h5"
            write_h5(file, image=image.astype(np.float64).transpose(2, 1, 0), label=label.transpose(2, 1, 0))
    return folder


def write_acdc_challenge(folder: Path, patients: Iterable[str], frames: tuple[int, int] = (1, 12)) -> Path:
    """``patientXXX/Info.cfg, patientXXX_4d.nii.gz, patientXXX_frameYY.nii.gz, patientXXX_frameYY_gt.nii.gz``."""
    for number, patient in enumerate(patients):
        patient_folder = folder / patient
        patient_folder.mkdir(parents=True)
        (patient_folder / "Info.cfg").write_text(f"ED: {frames[0]}\nES: {frames[1]}\nGroup: DCM\nNbFrame: 30\n")
        write_nifti(patient_folder / f"{patient}_4d.nii.gz", np.zeros((4, 4, 2, 3), np.int16))
        for frame in frames:
            image, label = case_arrays(100 * number + frame, classes=4)
            write_nifti(patient_folder / f"{patient}_frame{frame:02d}.nii.gz", (image * 100).astype(np.int16))
            write_nifti(patient_folder / f"{patient}_frame{frame:02d}_gt.nii.gz", label)
    return folder


def write_nifti(
    file: Path,
    array: np.ndarray,
    zooms: tuple[float, ...] = ACDC_ZOOMS_XYZ,
    sform_zooms: tuple[float, ...] | None = None,
) -> None:
    """Write a NIfTI file with a qform from ``zooms`` (RAS), and a sform from ``sform_zooms`` if given."""
    image = nibabel.Nifti1Image(array, None)
    image.set_qform(np.diag([*zooms, 1.0]), 1)
    image.set_sform(np.diag([*(sform_zooms or zooms), 1.0]), 1 if sform_zooms else 0)
    file.write_bytes(gzip.compress(image.to_bytes(), 1))


def write_splits_file(file: Path, **lists: object) -> Path:
    """Write a splits file with the lists ``train``, ``val``, ``test``, ``labeled``, ``unlabeled``."""
    file.write_text(json.dumps(lists))
    return file
