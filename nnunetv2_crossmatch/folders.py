"""Where things lie: nnU-Net's three root folders, ``imagesUn``, the preprocessed unlabeled cases, and safe writing.

Limit: names and paths only; nothing here reads an image or imports the host.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem, not_set

DATASET_NAME = re.compile(r"Dataset(\d{3})_\w+")
NOMINAL_SPACING_MARK = "crossmatch: nominal spacing"
"""Text in the ``descrip`` field of NIfTI files whose voxel size is not known: it travels with every copy of a file."""


def root_folder(variable: str) -> Path:
    """Folder that the environment variable ``variable`` (``nnUNet_raw``, ...) names.

    Raises:
        InputError: the variable is not set, or names something that is not a folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(not_set(variable))
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


def dataset_names(root: Path, dataset_id: int) -> list[str]:
    """Names of the data sets in ``root`` that carry ``dataset_id``, sorted."""
    matches = (DATASET_NAME.fullmatch(folder.name) for folder in root.iterdir() if folder.is_dir())
    return sorted(match.group(0) for match in matches if match and int(match.group(1)) == dataset_id)


def dataset_name(dataset: str | int) -> str:
    """``DatasetXXX_Name`` of a data set given by id or by name, looked for in the raw, then the preprocessed folder.

    Raises:
        InputError: no data set, or more than one, carries the id.
    """
    if not str(dataset).isdigit():
        if not any((root / str(dataset)).is_dir() for root in (raw_folder(), preprocessed_folder())):
            raise InputError(Problem("data set missing", raw_folder(), str(dataset), "give the id of an existing one"))
        return str(dataset)
    roots = (raw_folder(), preprocessed_folder())
    names = sorted({name for root in roots for name in dataset_names(root, int(dataset))})
    if len(names) != 1:
        detail = f"id {int(dataset):03d} is carried by {', '.join(names) or 'no folder'}"
        raise InputError(Problem("no unique data set", raw_folder(), detail, "use an id that exactly one data set has"))
    return names[0]


def images_unlabeled(dataset: str) -> Path:
    """``$nnUNet_raw/<dataset>/imagesUn``: the raw unlabeled images, named like ``imagesTr``."""
    return raw_folder() / dataset / "imagesUn"


def unlabeled_folder(dataset: str, data_identifier: str) -> Path:
    """Preprocessed unlabeled cases of one configuration, apart from the labeled ones: the host trains on those."""
    return preprocessed_folder() / dataset / f"{data_identifier}_unlabeled"


def manifest_file(unlabeled: Path) -> Path:
    """Record of the cases in ``unlabeled``; beside the folder, since the host refuses foreign file endings in it."""
    return unlabeled.with_name(unlabeled.name + ".json")


def partial_path(path: Path) -> Path:
    """Name under which ``path`` is written until it is complete: ``.<name>.partial`` in the same folder."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; flush it to disk and rename it to ``path`` when the block succeeds.

    On an exception what was at ``path`` before stays, and the temporary file is removed.
    """
    temporary = partial_path(path)
    try:
        yield temporary
        move_flushed(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_flushed(source: Path, target: Path) -> None:
    """Rename a file within a file system once its bytes are on the disk: after a power cut it is whole or not there."""
    _flush(source)
    source.replace(target)


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``path`` when the block succeeds, and is removed otherwise.

    Its files are flushed to disk first. A leftover of a killed run is removed first. ``path`` must not exist.
    """
    temporary = partial_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
