"""One folder of preprocessed unlabeled cases: where it lies, what it must be made with, which of its cases still hold.

Limit: keeps order in the folder; neither preprocesses a case nor decides about training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch import __version__, folders
from nnunetv2_crossmatch.data.manifest import (
    ENDINGS,
    CaseRecord,
    Manifest,
    damaged_cases,
    fresh_stamp,
    read_manifest,
    sources_changed,
)
from nnunetv2_crossmatch.data.raw_cases import RawCase
from nnunetv2_crossmatch.errors import InputError, Problem

IRRELEVANT = frozenset(
    "data_identifier inherits_from batch_size patch_size median_image_size_in_voxels architecture batch_dice "
    "next_stage previous_stage resampling_fn_probabilities resampling_fn_probabilities_kwargs".split()
)
"""Entries of a configuration that do not change a preprocessed voxel; every other one, known or not, counts."""


@dataclass(frozen=True)
class Prepared:
    """Where the unlabeled cases of one configuration lie, the hash they must carry, and the command that makes them."""

    folder: Path
    plans_hash: str
    command: str

    @property
    def manifest_file(self) -> Path:
        """The manifest beside the folder."""
        return folders.manifest_file(self.folder)


def plans_hash(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> str:
    """Hash of all that decides what preprocessed voxels look like: reader, axes, intensities, configuration."""
    configuration = configuration_manager.configuration
    relevant = {
        "reader": plans_manager.plans["image_reader_writer"],
        "transpose": plans_manager.transpose_forward,
        "intensities": plans_manager.foreground_intensity_properties_per_channel,
        "configuration": {key: value for key, value in configuration.items() if key not in IRRELEVANT},
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def describe(plans_manager: PlansManager, configuration: str, plans_identifier: str) -> Prepared:
    """Where the unlabeled cases of ``configuration`` lie, or will lie."""
    dataset = plans_manager.dataset_name
    manager = plans_manager.get_configuration(configuration)
    command = f"nnUNetv2_crossmatch_preprocess -d {dataset} -c {configuration} -p {plans_identifier}"
    folder = folders.unlabeled_folder(dataset, manager.data_identifier)
    return Prepared(folder, plans_hash(plans_manager, manager), command)


@contextmanager
def alone(prepared: Prepared) -> Iterator[None]:
    """Hold the lock of the unlabeled folder; say so when it has to wait for another run."""
    lock = FileLock(folders.partial_path(prepared.folder).with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another run that preprocesses {prepared.folder} ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_faults_told(prepared: Prepared) -> Iterator[None]:
    """Turn a full or read-only disk into one line."""
    try:
        yield
    except OSError as error:
        detail = f"{error.strerror} ({shutil.disk_usage(prepared.folder.parent).free} bytes free)"
        remedy = f"make room or mend the permissions, then {prepared.command}; finished cases are kept"
        raise InputError(Problem("cannot write", prepared.folder, detail, remedy)) from error


def finished_cases(prepared: Prepared, raw: Mapping[str, RawCase]) -> Manifest:
    """Manifest of the cases that need nothing: same plans, same raw files, whole."""
    empty = Manifest(prepared.plans_hash, __version__)
    if not prepared.manifest_file.exists():
        return empty
    try:
        old = read_manifest(prepared.manifest_file, prepared.command)
    except InputError as error:
        print(f"Preprocessing everything again: {error.problems[0].what} in {prepared.manifest_file}")
        return empty
    if old.plans_hash != prepared.plans_hash:
        print("Preprocessing everything again: the plans have changed")
        return empty
    same = {
        name: record
        for name, record in old.cases.items()
        if name in raw and not sources_changed(record, raw[name].sources)
    }
    damaged = damaged_cases(prepared.folder, Manifest(old.plans_hash, old.package_version, same))
    empty.cases = {name: _refreshed(record, raw[name]) for name, record in same.items() if name not in damaged}
    return empty


def _refreshed(record: CaseRecord, case: RawCase) -> CaseRecord:
    """``record`` with the sources' present times, so that copied raw files are not read again each time."""
    return CaseRecord(record.files, {file.name: fresh_stamp(file, record.sources[file.name]) for file in case.sources})


def drop_files(folder: Path, keep: Container[str]) -> None:
    """Remove files of cases that are no longer among the raw images."""
    for file in folder.iterdir() if folder.is_dir() else ():
        ending = next((ending for ending in ENDINGS if file.name.endswith(ending)), None)
        if ending and file.name.removesuffix(ending) not in keep:
            file.unlink()
