"""Unlabeled cases in worker processes: from raw files to the files that the host's loader reads.

Limit: which cases are due, and what becomes of the outcomes, is decided in ``unlabeled``.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
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
from nnunetv2_crossmatch.data.intact import check_intact
from nnunetv2_crossmatch.data.manifest import ENDINGS, CaseRecord, stamp
from nnunetv2_crossmatch.data.raw_cases import RawCase
from nnunetv2_crossmatch.data.workers import follow_parent
from nnunetv2_crossmatch.errors import InputError, Problem


@dataclass(frozen=True)
class Target:
    """What to preprocess for: a data set, its plans file (name without ending) and one configuration in it."""

    dataset: str
    plans_identifier: str
    configuration: str

    @property
    def plans_file(self) -> Path:
        """The plans file in the preprocessed data set."""
        return folders.preprocessed_folder() / self.dataset / f"{self.plans_identifier}.json"


@dataclass(frozen=True)
class Job:
    """One case for one target: written to ``scratch``, then moved to ``folder`` on the same file system."""

    target: Target
    case: RawCase
    scratch: Path
    folder: Path


@dataclass(frozen=True)
class Host:
    """The host's objects for a target, made once per process."""

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict[str, Any]


@lru_cache
def host_of(target: Target) -> Host:
    """The host's objects for ``target``, read from its plans file."""
    plans_manager = PlansManager(str(target.plans_file))
    dataset_json = load_json(str(target.plans_file.with_name("dataset.json")))
    return Host(plans_manager, plans_manager.get_configuration(target.configuration), dataset_json)


def run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, CaseRecord | Problem]]:
    """Outcome of :func:`prepare_case` for each job as it is done; as many are under way as there are processes.

    Raises:
        InputError: a worker process was killed; the cases that were under way are named.
        OSError: nothing can be written any more.
    """
    if not jobs:
        return
    processes = max(1, min(processes, len(jobs)))
    under_way: dict[Future[CaseRecord | Problem], Job] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=start_worker) as pool:
        try:
            for job in jobs:
                under_way[pool.submit(prepare_case, job)] = job
                if len(under_way) >= processes:
                    yield from _done(under_way)
            while under_way:
                yield from _done(under_way)
        except BrokenProcessPool as error:
            names = " or ".join(sorted(job.case.identifier for job in under_way.values()))
            remedy = "run the command again, with a smaller -np if memory ran out; finished cases are kept"
            problem = Problem("worker process killed", jobs[0].folder, f"while it worked on {names}", remedy)
            raise InputError(problem) from error


def _done(under_way: dict[Future[CaseRecord | Problem], Job]) -> Iterator[tuple[Job, CaseRecord | Problem]]:
    """Outcomes that are there, after waiting for at least one; a finished job leaves ``under_way``."""
    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
        outcome = future.result()
        yield under_way.pop(future), outcome


def start_worker() -> None:
    """Set up a worker process: one thread for the sums, and an end when the parent is gone."""
    torch.set_num_threads(1)
    follow_parent()


def prepare_case(job: Job) -> CaseRecord | Problem:
    """Preprocess a case and put its files into the job's folder, the file that makes it a listed case last.

    Returns:
        The record for the manifest, or what is wrong with the raw files (then the folder is unchanged).

    Raises:
        OSError: the files cannot be written (disk full, no permission).
    """
    host, case = host_of(job.target), job.case
    try:
        sources = {file.name: stamp(file) for file in case.sources}
        data, properties = read_checked(host, case)
    except InputError as error:
        return error.problems[0]
    except OSError as error:
        return Problem("image unreadable", error.filename, str(error.strerror), "replace or remove it")
    preprocessor = host.configuration_manager.preprocessor_class(verbose=False)
    data, seg, properties = preprocessor.run_case_npy(
        data, None, properties, host.plans_manager, host.configuration_manager, host.dataset_json
    )
    properties["class_locations"] = no_class_locations(host.plans_manager.get_label_manager(host.dataset_json))
    save_case(data, seg, properties, job.scratch / case.identifier, host.configuration_manager.patch_size)
    names = {ending: case.identifier + ending for ending in ENDINGS}
    files = {ending: stamp(job.scratch / name) for ending, name in names.items()}
    for name in names.values():
        folders.move_flushed(job.scratch / name, job.folder / name)
    return CaseRecord(files, sources)


def read_checked(host: Host, case: RawCase) -> tuple[np.ndarray, dict[str, Any]]:
    """Image (channels, z, y, x) float32 and properties as the plans' reader gives them, or a clean error.

    Raises:
        InputError: a file is cut off or unreadable, channels are too few or many, voxels are not finite or all equal.
    """
    for file in case.images:
        check_intact(file)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            data, properties = host.plans_manager.image_reader_writer_class().read_images([str(f) for f in case.images])
    except Exception as error:  # each reader has its own kinds; whatever it is, this file cannot be read
        reasons = [line.strip() for line in (str(error) or said.getvalue()).splitlines() if line.strip()]
        detail = reasons[-1] if str(error) and reasons else (reasons or [type(error).__name__])[0]
        raise InputError(Problem("image unreadable", case.images[0], detail, "replace or remove it")) from error
    _check_voxels(data, case, len(host.configuration_manager.normalization_schemes))
    return data, properties


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


def no_class_locations(label_manager: LabelManager) -> dict[int | tuple[int, ...], list]:
    """The entry that the host's loader reads for every case: each class or region, found nowhere."""
    classes = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    keys = [tuple(entry) if isinstance(entry, list | tuple) else entry for entry in classes]
    if label_manager.has_ignore_label:
        keys.append((-1, *label_manager.all_labels))
    return {key: [] for key in keys}


def save_case(data: np.ndarray, seg: np.ndarray, properties: dict[str, Any], stem: Path, patch_size: list[int]) -> None:
    """Write ``stem`` + ``.b2nd``, ``_seg.b2nd``, ``.pkl`` with the host's dataset class, in blocks that fit the patch.

    The segmentation is the host's own for an image without labels (0 inside the nonzero box, -1 outside): the host's
    augmentation masks by it where the plans normalise inside the mask only. As int8 it takes next to nothing.
    """
    for ending in ENDINGS:
        stem.with_name(stem.name + ending).unlink(missing_ok=True)
    data, seg = data.astype(np.float32, copy=False), seg.astype(np.int8, copy=False)
    blocks, chunks = comp_blosc2_params(data.shape, tuple(patch_size), data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, tuple(patch_size), seg.itemsize)
    nnUNetDatasetBlosc2.save_case(
        data, seg, properties, str(stem), chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg
    )
