"""Paths of nnU-Net's root folders, ``imagesUn`` and the preprocessed unlabeled cases; files and folders
that appear whole or not at all, whoever else writes there.

Limit: reads no image and does not import nnU-Net.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnunetv2_crossmatch.errors import InputError, Problem, command_line, raise_if_any, variable_not_set

DATASET_NAME = re.compile(r"Dataset(\d{3,})(?!\d).*", re.DOTALL)
"""Names that nnU-Net finds by id, and trains: anything may follow the number."""
PATH_CHARACTERS = frozenset("/\\\0")
LONGEST_NAME = 255
"""Bytes that file systems allow."""
NOMINAL_SPACING_MARK = "crossmatch: nominal spacing"
"""Text in the ``descrip`` field of NIfTI files whose voxel size is not known: it travels with every copy of a file."""


def check_names(paths: Iterable[Path]) -> None:
    """Do nothing if the names of all ``paths`` are UTF-8; SimpleITK ends the whole process with any other.

    Raises:
        InputError: all others are named, with ``\\x`` and the number of each byte that is no UTF-8.
    """
    names = {path: os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths}
    fix = "rename it, for example with: convmv -f CP850 -t UTF-8 --notest"
    raise_if_any(
        [
            Problem("file name not UTF-8", name, "it comes from another system", fix)
            for path, name in names.items()
            if name != str(path)
        ]
    )


def root_folder(variable: str) -> Path:
    """Folder that the environment variable ``variable`` (``nnUNet_raw``, ...) names.

    Raises:
        InputError: the variable is not set, or does not name a folder, or one whose name is not UTF-8.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(variable_not_set(variable))
    if not Path(value).is_dir():
        raise InputError(Problem("folder missing", value, f"named by {variable}", command_line("mkdir", "-p", value)))
    check_names([Path(value)])
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
    length = len(name.encode(errors="surrogatepass"))
    return name not in (".", "..") and 0 < length <= LONGEST_NAME and not PATH_CHARACTERS & set(name)


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


def dataset_number(name: str) -> str:
    """The number of a data set, by which nnU-Net's planning and preprocessing take it: they take no names.

    A number stays as it is.
    """
    match = DATASET_NAME.fullmatch(name)
    return str(int(match.group(1))) if match else name


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
    """Name of a folder for work on ``path`` under a lock: ``.<name>.partial`` beside it."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` that this user alone may enter; it is removed in the end.

    Its name is unique: another writer of ``path``, or a link that somebody planted, cannot be in the way.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.{socket.gethostname()}.", suffix=".partial", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ignores_case(folder: Path) -> bool:
    """Whether the file system of ``folder`` takes names that differ in upper and lower case for the same file."""
    with private_folder(folder / "case") as probe:
        (probe / "a").touch()
        return (probe / "A").exists()


def remove_left_overs(path: Path) -> None:
    """Remove what killed writers of ``path`` on this machine left; for those who hold a lock of ``path``."""
    _remove_left_overs(path.parent, re.escape(path.name))


def remove_left_overs_in(folder: Path) -> None:
    """Remove what killed writers of any file in ``folder`` left; for those who hold a lock of the whole folder."""
    _remove_left_overs(folder, ".+")


def _remove_left_overs(folder: Path, names: str) -> None:
    owner = re.escape(socket.gethostname())
    form = re.compile(rf"\.{names}(\.{owner}\.\w{{8}})?\.partial")
    for entry in [folder / name for name in os.listdir(folder) if form.fullmatch(name)]:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; flush the file to disk and rename it to ``path`` when the block succeeds.

    On an exception an existing file at ``path`` stays unchanged, and the temporary file is removed. Of several writers
    at once the last one wins.
    """
    with private_folder(path) as folder:
        yield folder / path.name
        flush_and_rename(folder / path.name, path)


def write_json(file: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def flush_and_rename(source: Path, target: Path) -> None:
    """Flush a file to disk, then rename it: after a power cut it is complete or absent.

    If the folder of ``target`` is a link or a mount point into another file system, the file is copied there first.
    """
    _fsync(source)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with private_folder(target) as folder:
            shutil.copy(source, folder / target.name)
            flush_and_rename(folder / target.name, target)
        source.unlink()


def _fsync(file: Path) -> None:
    with file.open("r+b") as stream:  # Windows flushes what is open for writing only
        os.fsync(stream.fileno())


@contextmanager
def exclusive(path: Path, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock of ``path``, ``.<name>.lock`` beside it, while the block writes there.

    Args:
        path: what is written.
        wait_s: seconds to wait for another process.

    Raises:
        InputError: another process holds it, or a link is in its place.
    """
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        remedy = "wait until it has ended, or write somewhere else"
        raise InputError(Problem("another process writes here", path, f"it holds {file.name}", remedy)) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(Problem("cannot lock", file, "a link is in the place of the lock", "remove it")) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # before the release: a lock of a file without a name is not granted
        lock.release()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; rename it to ``path`` when the block succeeds, remove it otherwise.

    What a killed run of this machine left is removed first. All files are flushed to disk before the rename.

    Raises:
        InputError: ``path`` exists, or another process writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path):
        _check_free(path)
        remove_left_overs(path)
        with private_folder(path) as private:
            folder = private / path.name
            folder.mkdir()
            yield folder
            for file in folder.rglob("*"):
                if file.is_file():
                    _fsync(file)
            _check_free(path)
            folder.replace(path)


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        detail, remedy = "nothing is overwritten", "remove it, or write somewhere else"
        raise InputError(Problem("already there", path, detail, remedy))
