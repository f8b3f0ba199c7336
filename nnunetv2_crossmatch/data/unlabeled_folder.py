"""Folder of the preprocessed unlabeled cases of one configuration: path, lock, and its cases that are up to date.

Limit: preprocesses no case.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch import __version__, folders
from nnunetv2_crossmatch.data.manifest import (
    ENDINGS,
    CaseRecord,
    Manifest,
    find_damaged_cases,
    preprocessing_version,
    read_manifest,
    sources_changed,
    updated_file_info,
)
from nnunetv2_crossmatch.data.raw_cases import RawCase
from nnunetv2_crossmatch.data.signs_of_life import SignsOfLife, lives, may_live
from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem, command_line, system_reason

READER = ".reader."  # in the names of the marks
VOXEL_INDEPENDENT_ENTRIES = frozenset(
    "data_identifier inherits_from batch_size patch_size median_image_size_in_voxels architecture batch_dice "
    "next_stage previous_stage resampling_fn_probabilities resampling_fn_probabilities_kwargs".split()
)
"""Entries of a configuration that do not change preprocessed voxels; all other entries are hashed."""


@dataclass(frozen=True)
class UnlabeledFolder:
    """Path of the unlabeled cases of one configuration, hash of its plans, and the command that preprocesses them."""

    folder: Path
    plans_hash: str
    command: str

    @property
    def manifest_file(self) -> Path:
        """The manifest, next to the folder."""
        return folders.manifest_file(self.folder)


def plans_hash(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> str:
    """Hash of everything in the plans that changes preprocessed voxels: reader, axes, intensities, configuration."""
    configuration = configuration_manager.configuration
    relevant = {
        "reader": plans_manager.plans["image_reader_writer"],
        "transpose": plans_manager.transpose_forward,
        "intensities": plans_manager.foreground_intensity_properties_per_channel,
        "configuration": {key: value for key, value in configuration.items() if key not in VOXEL_INDEPENDENT_ENTRIES},
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def unlabeled_folder_of(plans_manager: PlansManager, configuration: str, plans_identifier: str) -> UnlabeledFolder:
    """Folder of the unlabeled cases of ``configuration``; it may not exist yet."""
    dataset = plans_manager.dataset_name
    manager = plans_manager.get_configuration(configuration)
    options = ("-d", dataset, "-c", configuration, "-p", plans_identifier)
    command = command_line("nnUNetv2_crossmatch_preprocess", *options)
    folder = folders.unlabeled_folder(dataset, manager.data_identifier)
    return UnlabeledFolder(folder, plans_hash(plans_manager, manager), command)


def check_no_link_to_other_dataset(unlabeled: UnlabeledFolder) -> None:
    """Check that the folder is no link into the folder of another preprocessed data set.

    Raises:
        InputError: it is one; preprocessing would remove cases of the other data set.
    """
    resolved, root = unlabeled.folder.resolve(), folders.preprocessed_folder().resolve()
    if resolved.is_relative_to(root) and not resolved.is_relative_to(unlabeled.folder.parent.resolve()):
        detail = f"it is a link to {resolved}, a folder of another data set"
        raise InputError(Problem("folder of another data set", unlabeled.folder, detail, "remove the link"))


def _lock_file(folder: Path) -> Path:
    return folders.partial_path(folder).with_suffix(".lock")


@contextmanager
def folder_lock(unlabeled: UnlabeledFolder) -> Iterator[None]:
    """Hold the lock of the unlabeled folder; print a line before waiting for another run."""
    lock = FileLock(_lock_file(unlabeled.folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another run that preprocesses {unlabeled.folder} ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors_reported(unlabeled: UnlabeledFolder) -> Iterator[None]:
    """Raise an :class:`InputError` for a full or read-only disk."""
    try:
        yield
    except OSError as error:
        place = unlabeled.folder if unlabeled.folder.is_dir() else unlabeled.folder.parent
        detail = f"{system_reason(error)} ({shutil.disk_usage(place).free} bytes free)"
        remedy = f"make room or mend the permissions, then {unlabeled.command}; finished cases are kept"
        raise InputError(Problem("cannot write", unlabeled.folder, detail, remedy)) from error


def up_to_date_cases(unlabeled: UnlabeledFolder, raw: Mapping[str, RawCase]) -> Manifest:
    """Manifest of a run that begins now, with the cases that need no preprocessing.

    These have equal plans, versions and raw files, and are undamaged.
    """
    made_with = preprocessing_version()
    up_to_date = Manifest(
        unlabeled.plans_hash, __version__, asked_for=tuple(sorted(raw)), ended=False, made_with=made_with
    )
    if not unlabeled.manifest_file.exists():
        return up_to_date
    try:
        recorded = read_manifest(unlabeled.manifest_file, unlabeled.command)
    except NotReadError:
        raise
    except InputError as error:
        print(f"Preprocessing everything again: {error.problems[0].what} in {unlabeled.manifest_file}")
        return up_to_date
    if recorded.plans_hash != unlabeled.plans_hash:
        print("Preprocessing everything again: the plans have changed")
        return up_to_date
    if recorded.made_with not in ("", made_with):
        print(f"Preprocessing everything again: {recorded.made_with} before, {made_with} now")
        return up_to_date
    unchanged = {
        name: record
        for name, record in recorded.cases.items()
        if name in raw and not sources_changed(record, raw[name].sources)
    }
    damaged = find_damaged_cases(unlabeled.folder, Manifest(recorded.plans_hash, recorded.package_version, unchanged))
    up_to_date.cases = {
        name: _with_current_times(record, raw[name]) for name, record in unchanged.items() if name not in damaged
    }
    return up_to_date


def _with_current_times(record: CaseRecord, case: RawCase) -> CaseRecord:
    """``record`` with the present modification times, so that copied raw files are read once only."""
    return CaseRecord(
        record.files, {file.name: updated_file_info(file, record.sources[file.name]) for file in case.sources}
    )


class Reading:
    """Mark of a process that reads the cases in ``folder``, until it is released or the process ends.

    It is locked, and touched for file systems that do not pass locks on. Without permission to write beside the folder
    there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder.with_name(f".{folder.name}{READER}{socket.gethostname()}.{os.getpid()}.lock")
        self._lock = FileLock(self._file, is_singleton=True)
        self._signs: SignsOfLife | None = None
        with suppress(OSError):
            self._lock.acquire(timeout=0)
            self._signs = SignsOfLife(self._file)

    def release(self) -> None:
        """Remove the mark."""
        if self._signs is not None:
            self._signs.stop()
        if self._lock.is_locked:
            self._file.unlink(missing_ok=True)
            self._lock.release()


def check_not_read(unlabeled: UnlabeledFolder, keep: Container[str]) -> None:
    """Raise :class:`InputError` if a training reads the folder and holds cases that are not in ``keep``."""
    changed = {case for _, case in _files_with_case(unlabeled.folder) if case not in keep}
    if changed and (reader := _reader(unlabeled.folder)):
        detail = f"{reader}; {len(changed)} cases would be removed or made anew"
        remedy = f"wait until it has ended, then {unlabeled.command}"
        raise InputError(Problem("a training reads these cases", unlabeled.folder, detail, remedy))


def _reader(folder: Path) -> str | None:
    """Host and number of a process that reads ``folder``; marks of killed ones are removed."""
    start = f".{folder.name}{READER}"
    for file in [file for file in folder.parent.iterdir() if file.name.startswith(start)]:
        host, _, process = file.name.removeprefix(start).removesuffix(".lock").rpartition(".")
        if _is_held(file, elsewhere=host != socket.gethostname(), clock=_lock_file(folder)):
            return f"process {process} on {host}"
    return None


def _is_held(mark: Path, elsewhere: bool, clock: Path) -> bool:
    """Whether the process of ``mark`` lives; otherwise the mark is removed."""
    is_fresh = elsewhere and may_live(mark, clock)  # asked first, since to lock a file touches it
    lock = FileLock(mark)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    is_alive = is_fresh and lives(mark, clock)
    if not is_alive:
        mark.unlink(missing_ok=True)
    lock.release()
    return is_alive


def remove_other_cases(folder: Path, keep: Container[str]) -> None:
    """Remove the files of all cases that are not in ``keep``."""
    for file, case in _files_with_case(folder):
        if case not in keep:
            file.unlink()


def _files_with_case(folder: Path) -> list[tuple[Path, str]]:
    """Files of preprocessed cases, each with its case."""
    files = folder.iterdir() if folder.is_dir() else ()
    endings = ((file, next((ending for ending in ENDINGS if file.name.endswith(ending)), None)) for file in files)
    return [(file, file.name.removesuffix(ending)) for file, ending in endings if ending]
