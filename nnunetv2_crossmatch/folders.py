"""Paths of nnU-Net's root folders, ``imagesUn`` and the preprocessed unlabeled cases; atomic writing of files.

Limit: reads no image and does not import nnU-Net.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem, variable_not_set

DATASET_NAME = re.compile(r"Dataset(\d{3,})(?!\d).*", re.DOTALL)
"""Names that nnU-Net finds by id, and trains: anything may follow the number."""
PATH_CHARACTERS = frozenset("/\\\0")
NOMINAL_SPACING_MARK = "crossmatch: nominal spacing"
"""Text in the ``descrip`` field of NIfTI files whose voxel size is not known: it travels with every copy of a file."""


def root_folder(variable: str) -> Path:
    """Folder that the environment variable ``variable`` (``nnUNet_raw``, ...) names.

    Raises:
        InputError: the variable is not set, or does not name a folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(variable_not_set(variable))
    if not Path(value).is_dir():
        raise InputError(Problem("folder missing", value, f"named by {variable}", f'mkdir -p "{value}"'))
    return Path(value)


def raw_folder() -> Path:
    """``$nnUNet_raw``."""
    return root_folder("nnUNet_raw")


def preprocessed_folder() -> Path:
    """``$nnUNet_preprocessed``."""
    return root_folder("nnUNet_preprocessed")


def results_folder() -> Path:
    """``$nnUNet_results``."""
    return root_folder("nnUNet_results")


def datasets_with_id(root: Path, dataset_id: int) -> list[str]:
    """Names of the data sets in ``root`` with the id ``dataset_id``, sorted."""
    matches = (DATASET_NAME.fullmatch(folder.name) for folder in root.iterdir() if folder.is_dir())
    return sorted(match.group(0) for match in matches if match and int(match.group(1)) == dataset_id)


def is_file_name(name: str) -> bool:
    """Whether ``name`` is a name without a path; nnU-Net allows blanks, brackets and letters of any language."""
    return name not in ("", ".", "..") and not PATH_CHARACTERS & set(name)


def dataset_name(dataset: str | int) -> str:
    """``DatasetXXX_Name`` of a data set given by id or name, searched in the raw and the preprocessed folder.

    Raises:
        InputError: no data set, or more than one, has the id.
    """
    name, roots = str(dataset), (raw_folder(), preprocessed_folder())
    if not name.isdigit():
        if not is_file_name(name) or not any((root / name).is_dir() for root in roots):
            raise InputError(Problem("data set missing", raw_folder(), name, "give the id of an existing one"))
        return name
    names = sorted({name for root in roots for name in datasets_with_id(root, int(dataset))})
    if len(names) != 1:
        detail = f"id {int(dataset):03d} is carried by {', '.join(names) or 'no folder'}"
        raise InputError(Problem("no unique data set", raw_folder(), detail, "use an id that exactly one data set has"))
    return names[0]


def unlabeled_images_folder(dataset: str) -> Path:
    """``$nnUNet_raw/<dataset>/imagesUn``: the raw unlabeled images, named like those in ``imagesTr``."""
    return raw_folder() / dataset / "imagesUn"


def unlabeled_folder(dataset: str, data_identifier: str) -> Path:
    """Folder of the preprocessed unlabeled cases of one configuration.

    It is separate from the labeled cases because nnU-Net trains on every case in their folder.
    """
    return preprocessed_folder() / dataset / f"{data_identifier}_unlabeled"


def manifest_file(unlabeled: Path) -> Path:
    """Manifest of the folder ``unlabeled``, next to it: nnU-Net refuses other file endings inside the folder."""
    return unlabeled.with_name(unlabeled.name + ".json")


def partial_path(path: Path) -> Path:
    """Temporary name of ``path`` while it is written: ``.<name>.partial`` in the same folder."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; flush the file to disk and rename it to ``path`` when the block succeeds.

    On an exception an existing file at ``path`` stays unchanged, and the temporary file is removed.
    """
    temporary = partial_path(path)
    try:
        yield temporary
        flush_and_rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_and_rename(source: Path, target: Path) -> None:
    """Flush a file to disk, then rename it in the same file system: after a power cut it is complete or absent."""
    _fsync(source)
    source.replace(target)


def _fsync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; rename it to ``path`` when the block succeeds, remove it otherwise.

    The temporary folder of a killed run is removed first. All files are flushed to disk before the rename. ``path``
    must not exist.
    """
    temporary = partial_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
