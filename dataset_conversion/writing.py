"""Writing of a raw nnU-Net data set: its name, images, labels, ``dataset.json`` and splits; reporting of disk errors.

Limit: independent of the source of the volumes.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.folders import (
    NOMINAL_SPACING_MARK,
    preprocessed_folder,
    raw_folder,
    results_folder,
    write_json,
)

FILE_ENDING = ".nii.gz"
FOLDER_ENDINGS = {"labeled": "Tr", "unlabeled": "Un", "val": "Val", "test": "Ts"}
SPLITS_FILE = "splits_final.json"
GZIP_LEVEL = 1  # three times as fast as level 6 on MR images, files a few per cent larger
SCANNER_CODE = 1  # NIfTI: scanner coordinates
FOLDS = 5
NNUNET_SPLIT_SEED = 12345
SPACE_FACTOR = 1.2  # level 1 against the sources' stronger compression
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def new_dataset_name(dataset_id: int, kind: str) -> str:
    """``DatasetXXX_<kind>`` for an id that no data set has in any of nnU-Net's root folders.

    A preprocessed folder of this name that contains only the splits, as after a killed run, is allowed.

    Raises:
        InputError: the id is outside 1 to 999, a data set of any name has it, or there are models of one of this name:
            they would join those of the new one, trained on what may be its test cases.
    """
    if not 0 < dataset_id < 1000:
        raise InputError(Problem("impossible data set id", "", f"-d {dataset_id}", "choose one from 1 to 999"))
    name = f"Dataset{dataset_id:03d}_{kind}"
    raw, preprocessed = raw_folder(), preprocessed_folder()
    taken = [*_folders_with_id(raw, dataset_id), *_folders_with_id(preprocessed, dataset_id)]
    if os.environ.get("nnUNet_results"):
        taken += [folder for folder in _folders_with_id(results_folder(), dataset_id) if folder.name != name]
    taken = [folder for folder in taken if folder != preprocessed / name or not _contains_splits_only(folder)]
    fix = "choose another id with -d, or remove the folder"
    problems = [Problem("data set id taken", folder, f"it carries the id {dataset_id:03d}", fix) for folder in taken]
    raise_if_any(problems + _old_model_problems(name))
    return name


def _old_model_problems(name: str) -> list[Problem]:
    """Models in ``nnUNet_results`` of an earlier data set of this ``name``."""
    results = results_folder() / name if os.environ.get("nnUNet_results") else None
    models = sorted({fold.parent for fold in results.glob("*/fold_*")}) if results else []
    detail = "trained on an earlier data set of this name; its folds would join the new ones"
    fix = "move it away, or choose another id with -d"
    return [Problem("old results", model, detail, fix) for model in models]


def check_disk_space(source_bytes: int) -> int:
    """Upper bound of the bytes that the target needs; raises an :class:`InputError` if less space is free."""
    needed, free = int(source_bytes * SPACE_FACTOR), shutil.disk_usage(raw_folder()).free
    if free < needed:
        raise InputError(_disk_full(needed))
    return needed


@contextmanager
def disk_errors_reported(needed: int) -> Iterator[None]:
    """Raise an :class:`InputError` for a full or read-only disk, with the needed and free space."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise InputError(_disk_full(needed)) from error
        if error.errno in NOT_WRITABLE:
            where = error.filename or raw_folder()
            raise InputError(Problem("cannot write", where, os.strerror(error.errno), "make it writable")) from error
        raise


def write_case(
    dataset: Path,
    role: str,
    identifier: str,
    image: np.ndarray,
    label: np.ndarray | None,
    affine: np.ndarray,
    spacing_is_nominal: bool = False,
) -> None:
    """Write one case, axes (x, y, z), into the folders of its role; both files carry the same geometry.

    A nominal spacing is marked in both headers, so that the mark is in every copy of the files.
    """
    ending = FOLDER_ENDINGS[role]
    _write_nifti(dataset / f"images{ending}" / f"{identifier}_0000{FILE_ENDING}", image, affine, spacing_is_nominal)
    if label is not None:
        _write_nifti(dataset / f"labels{ending}" / f"{identifier}{FILE_ENDING}", label, affine, spacing_is_nominal)


def write_dataset_json(folder: Path, cases: int, channel: str, labels: Mapping[str, int], **more: str) -> None:
    """nnU-Net's ``dataset.json`` for one channel and ``cases`` labeled cases."""
    generate_dataset_json(str(folder), {"0": channel}, dict(labels), cases, FILE_ENDING, **more)


def write_splits(folder: Path, dataset: str, patients: Mapping[str, str]) -> int:
    """Write the folds to ``folder`` and to the preprocessed folder of ``dataset``, where nnU-Net reads them.

    nnU-Net's own folds split by case, which can separate two frames of one patient into training and validation. For
    a single patient no file is written, and nnU-Net fails instead of splitting the patient.

    Returns:
        Number of folds, 0 if none was written.
    """
    folds = patient_folds(patients)
    if folds:
        write_json(folder / SPLITS_FILE, folds)
        nnunet_folder = preprocessed_folder() / dataset
        nnunet_folder.mkdir(exist_ok=True)
        write_json(nnunet_folder / SPLITS_FILE, folds)
    return len(folds)


def patient_folds(patients: Mapping[str, str]) -> list[dict[str, list[str]]]:
    """Cross-validation folds by patient; at most five, and none for a single patient.

    Equal to nnU-Net's own folds if each patient has one case.

    Args:
        patients: case name -> patient name.
    """
    names = sorted(set(patients.values()))
    if len(names) < 2:
        return []
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # takes a second to import

    by_patient = generate_crossval_split(names, seed=NNUNET_SPLIT_SEED, n_splits=min(FOLDS, len(names)))
    return [
        {side: [case for case in sorted(patients) if patients[case] in chosen] for side, chosen in fold.items()}
        for fold in by_patient
    ]


def _folders_with_id(root: Path, dataset_id: int) -> list[Path]:
    """Folders that nnU-Net assigns to this id: it compares the prefix only."""
    return sorted(folder for folder in root.glob(f"Dataset{dataset_id:03d}*") if folder.is_dir())


def _contains_splits_only(folder: Path) -> bool:
    return all(SPLITS_FILE in entry.name for entry in folder.iterdir())


def _disk_full(needed: int) -> Problem:
    root = raw_folder()
    detail = f"about {needed / 1e6:.0f} MB needed, {shutil.disk_usage(root).free / 1e6:.0f} MB free"
    return Problem("disk full", root, detail, "make room, or set nnUNet_raw to a larger disk")


def _write_nifti(file: Path, array: np.ndarray, affine: np.ndarray, spacing_is_nominal: bool) -> None:
    volume = nibabel.Nifti1Image(array, affine)
    volume.header["descrip"] = NOMINAL_SPACING_MARK if spacing_is_nominal else ""
    volume.set_sform(affine, SCANNER_CODE)
    volume.set_qform(affine, SCANNER_CODE)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(gzip.compress(volume.to_bytes(), GZIP_LEVEL, mtime=0))  # mtime: equal input, equal bytes
