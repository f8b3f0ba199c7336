"""Preprocessing of unlabeled cases in worker processes: from raw files to the files of nnU-Net's dataset class.

Limit: ``preprocessing`` selects the cases and handles the results.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.data.manifest import ENDINGS, CaseRecord, file_info
from nnunetv2_crossmatch.data.raw_cases import RawCase
from nnunetv2_crossmatch.data.reader_warnings import collected_warnings
from nnunetv2_crossmatch.data.voxel_size import check_voxel_size
from nnunetv2_crossmatch.data.workers import exit_with_parent
from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem, file_not_read, system_reason, unread_reason


@dataclass(frozen=True)
class DatasetConfiguration:
    """A data set, its plans file (name without ending) and one configuration of the plans."""

    dataset: str
    plans_identifier: str
    configuration: str

    @property
    def plans_file(self) -> Path:
        """The plans file in the preprocessed data set."""
        return folders.preprocessed_folder() / self.dataset / f"{self.plans_identifier}.json"


@dataclass(frozen=True)
class Job:
    """One case to preprocess: written to ``scratch``, then moved to ``folder`` in the same file system."""

    target: DatasetConfiguration
    case: RawCase
    scratch: Path
    folder: Path


@dataclass(frozen=True)
class PreprocessedCase:
    """Record of a case for the manifest, and what the reader warned of."""

    record: CaseRecord
    warnings: list[str]


@dataclass(frozen=True)
class NnunetObjects:
    """nnU-Net's plans, configuration and dataset.json."""

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict[str, Any]


@lru_cache
def nnunet_objects(target: DatasetConfiguration) -> NnunetObjects:
    """nnU-Net's objects for ``target``, read from its files once per process."""
    plans_manager = PlansManager(str(target.plans_file))
    dataset_json = load_json(str(target.plans_file.with_name("dataset.json")))
    return NnunetObjects(plans_manager, plans_manager.get_configuration(target.configuration), dataset_json)


def run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, PreprocessedCase | Problem]]:
    """Result of :func:`preprocess_case` for each job, in the order in which they finish.

    Raises:
        InputError: a worker process was killed; the cases that it may have worked on are named.
        OSError: the files cannot be written.
    """
    if not jobs:
        return
    processes = max(1, min(processes, len(jobs)))
    running: dict[Future[PreprocessedCase | Problem], Job] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=initialize_worker) as pool:
        try:
            for job in jobs:
                running[pool.submit(preprocess_case, job)] = job
                if len(running) >= processes:
                    yield from _finished_jobs(running)
            while running:
                yield from _finished_jobs(running)
        except BrokenProcessPool as error:
            names = " or ".join(sorted(job.case.identifier for job in running.values()))
            remedy = "run the command again, with a smaller -np if memory ran out; finished cases are kept"
            problem = Problem("worker process killed", jobs[0].folder, f"while it worked on {names}", remedy)
            raise InputError(problem) from error


def _finished_jobs(
    running: dict[Future[PreprocessedCase | Problem], Job],
) -> Iterator[tuple[Job, PreprocessedCase | Problem]]:
    """Wait for at least one result; remove the finished jobs from ``running``.

    Failed ones come last: what has finished beside them is recorded before their error is raised.
    """
    done = wait(running, return_when=FIRST_COMPLETED).done
    for future in sorted(done, key=lambda future: future.exception() is not None):
        result = future.result()
        yield running.pop(future), result


def initialize_worker() -> None:
    """Initialize a worker process: one torch thread, exit with the parent."""
    torch.set_num_threads(1)
    exit_with_parent()


def preprocess_case(job: Job) -> PreprocessedCase | Problem:
    """Preprocess a case and move its files to the job's folder; last the file by which nnU-Net lists cases.

    Returns:
        The record for the manifest and the warnings, or the problem of the raw files (then the folder is unchanged).

    Raises:
        OSError: the files cannot be written (disk full, no permission).
    """
    nnunet, case = nnunet_objects(job.target), job.case
    try:
        sources = {file.name: file_info(file) for file in case.sources}
        with collected_warnings() as warnings:
            data, properties = read_and_check(nnunet, case)
        warnings += constant_channels(data, case)
        raw_range = float(data.min()), float(data.max())
    except InputError as error:
        return error.problems[0]
    except OSError as error:
        return file_not_read(Path(error.filename or case.images[0]), system_reason(error))
    preprocessor = nnunet.configuration_manager.preprocessor_class(verbose=False)
    data, seg, properties = preprocessor.run_case_npy(
        data, None, properties, nnunet.plans_manager, nnunet.configuration_manager, nnunet.dataset_json
    )
    if not np.isfinite(data).all():
        low, high = raw_range
        detail = f"its voxels run from {low:g} to {high:g}, too far for nnU-Net's normalization"
        return Problem("image not finite", case.images[0], detail, "replace its padding value by that of air or of 0")
    properties["class_locations"] = empty_class_locations(nnunet.plans_manager.get_label_manager(nnunet.dataset_json))
    save_case(data, seg, properties, job.scratch / case.identifier, nnunet.configuration_manager.patch_size)
    names = {ending: case.identifier + ending for ending in ENDINGS}
    files = {ending: file_info(job.scratch / name) for ending, name in names.items()}
    for name in names.values():
        folders.flush_and_rename(job.scratch / name, job.folder / name)
    return PreprocessedCase(CaseRecord(files, sources), warnings)


def read_and_check(nnunet: NnunetObjects, case: RawCase) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a case with the reader of the plans and check it.

    Returns:
        Image (channels, z, y, x) float32, and its properties.

    Raises:
        InputError: a file is damaged or unreadable, the number of channels is wrong, or voxels are not finite or equal.
    """
    for file in case.images:
        check_file_integrity(file)
    data, properties = _read(nnunet, case)
    for file in case.images:
        check_voxel_size(file, properties["spacing"], median_voxel_size(nnunet.plans_manager))
    _check_voxels(data, case, len(nnunet.configuration_manager.normalization_schemes))
    return data, properties


def _read(nnunet: NnunetObjects, case: RawCase) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a case; warnings that the reader prints are printed only if it is read."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            result = nnunet.plans_manager.image_reader_writer_class().read_images([str(f) for f in case.images])
    except Exception as error:  # readers raise errors of any type
        for file in case.images:
            if reason := unread_reason(error, file):
                raise NotReadError(file_not_read(file, reason)) from error
        reasons = [line.strip() for line in (str(error) or printed.getvalue()).splitlines() if line.strip()]
        detail = reasons[-1] if str(error) and reasons else (reasons or [type(error).__name__])[0]
        is_of_sidecar = isinstance(error, KeyError | json.JSONDecodeError)  # of a .tif, whose voxel size it tells
        where = (*(case.sidecars if is_of_sidecar else ()), *case.images)[0]
        raise InputError(Problem("image unreadable", where, detail, "replace or remove it")) from error
    print(printed.getvalue())
    return result


def median_voxel_size(plans_manager: PlansManager) -> list[float]:
    """Median voxel size of the labeled cases, mm, (z, y, x)."""
    median = plans_manager.original_median_spacing_after_transp
    return [median[axis] for axis in plans_manager.transpose_backward]


def constant_channels(data: np.ndarray, case: RawCase) -> list[str]:
    """A warning for each channel with one value only, which normalization makes 0 as in a labeled case."""
    per_file = len(data) // len(case.images)
    constant = [channel for channel, voxels in enumerate(data) if voxels.min() == voxels.max()]
    return [
        f"{case.images[channel // per_file]}: channel {channel} has one value only, and tells nothing"
        for channel in constant
    ]


def _check_voxels(data: np.ndarray, case: RawCase, channels: int) -> None:
    where = case.images[0]
    if data.shape[0] != channels:
        detail = f"{data.shape[0]} found, {channels} expected"
        fix = "give it the channels of the labeled images, and no alpha"
        raise InputError(Problem("wrong number of channels", where, detail, fix))
    finite = np.isfinite(data)
    if not finite.all():
        first = tuple(int(index) for index in np.argwhere(~finite)[0])
        detail = f"{int((~finite).sum())} voxels are NaN or infinite, the first at (channel, z, y, x) {first}"
        raise InputError(Problem("image not finite", where, detail, "repair or remove it"))
    if data.min() == data.max():
        raise InputError(Problem("empty image", where, f"every voxel is {data.min():g}", "replace or remove it"))


def empty_class_locations(label_manager: LabelManager) -> dict[int | tuple[int, ...], list]:
    """``class_locations`` of a case without labels: an empty list per class or region; nnU-Net's loader needs it."""
    classes = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    keys = [tuple(entry) if isinstance(entry, list | tuple) else entry for entry in classes]
    if label_manager.has_ignore_label:
        keys.append((-1, *label_manager.all_labels))
    return {key: [] for key in keys}


def save_case(data: np.ndarray, seg: np.ndarray, properties: dict[str, Any], stem: Path, patch_size: list[int]) -> None:
    """Write ``stem`` + ``.b2nd``, ``_seg.b2nd``, ``.pkl`` with nnU-Net's dataset class, in blocks for the patch size.

    The segmentation is nnU-Net's for an image without labels: 0 inside the nonzero region, -1 outside. nnU-Net's
    augmentation masks with it if the plans normalise inside the nonzero region only. It is stored as int8 to save disk
    space.

    Raises:
        OSError: the files cannot be written; the library writes its own files and does not say why it failed.
    """
    for ending in ENDINGS:
        stem.with_name(stem.name + ending).unlink(missing_ok=True)
    data, seg = data.astype(np.float32, copy=False), seg.astype(np.int8, copy=False)
    blocks, chunks = comp_blosc2_params(data.shape, tuple(patch_size), data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, tuple(patch_size), seg.itemsize)
    kinds = {"chunks": chunks, "blocks": blocks, "chunks_seg": chunks_seg, "blocks_seg": blocks_seg}
    try:
        nnUNetDatasetBlosc2.save_case(data, seg, properties, str(stem), **kinds)
    except RuntimeError as error:
        full = shutil.disk_usage(stem.parent).free < data.nbytes + seg.nbytes
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, os.strerror(number), str(stem)) from error
