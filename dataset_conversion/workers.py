"""Parallel conversion of cases: read, check and write each case, and report the problems of all cases together.

Limit: converts cases; ``conversion`` writes everything else of the data set.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_crossmatch.dataset_conversion.cases import CaseResult, ConversionJob
from nnunetv2_crossmatch.dataset_conversion.checks import convert_image, convert_label, image_problems, label_problems
from nnunetv2_crossmatch.dataset_conversion.reading import Volume
from nnunetv2_crossmatch.dataset_conversion.writing import write_case
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any


def convert_cases(jobs: Sequence[ConversionJob], processes: int) -> dict[str, dict[str, Any]]:
    """Convert all cases; returns their entries in the conversion record by case name, sorted.

    Raises:
        InputError: contains the problems of all cases; or a worker was killed.
        OSError: a file cannot be written; the remaining cases are not started then.
    """
    results = _results(jobs, min(processes, len(jobs)))
    progress = tqdm(results, desc="converting", unit="case", total=len(jobs))
    finished = sorted(progress, key=lambda result: result.identifier)
    raise_if_any([problem for result in finished for problem in result.problems])
    return {result.identifier: result.entry for result in finished}


def convert_case(job: ConversionJob) -> CaseResult:
    """Read, check and write one case; returns problems of the input, raises errors of the disk."""
    case = job.case
    try:
        volume = _read_case(job)
        image, label, notes = _check_and_convert(volume, job)
    except InputError as error:
        return CaseResult(case.identifier, problems=error.problems)
    is_nominal = volume.spacing.source == "nominal"
    write_case(job.target, job.role, case.identifier, image, label, volume.affine, is_nominal)
    return CaseResult(case.identifier, _record_entry(job, volume, notes))


def _results(jobs: Sequence[ConversionJob], processes: int) -> Iterator[CaseResult]:
    if processes == 1:
        yield from map(convert_case, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=_start_parent_watcher)
    try:
        yield from (future.result() for future in as_completed([pool.submit(convert_case, job) for job in jobs]))
    except BrokenProcessPool as error:
        fix = "run again with fewer processes: -np 1"
        raise InputError(Problem("worker process killed", "", "perhaps the memory was full", fix)) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_parent_watcher() -> None:
    """Let a worker exit when its parent is killed; otherwise it would wait for jobs forever."""
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in workers only"
    parent.join()
    os._exit(1)


def _read_case(job: ConversionJob) -> Volume:
    case, with_label = job.case, job.role != "unlabeled"
    if with_label and case.label is None:
        detail = f"case {case.identifier} is in the list of {job.role} cases"
        fix = 'add the label file, or put the case into the "unlabeled" list (--splits FILE)'
        raise InputError(Problem("label missing", case.image, detail, fix))
    return job.read_case(case, with_label)


def _check_and_convert(volume: Volume, job: ConversionJob) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Image and label as they are stored, and notes; raises the problems of both."""
    case, image = job.case, convert_image(volume.image)
    problems = image_problems(image, case.image)
    if volume.label is None:
        raise_if_any(problems)
        return image, None, ()
    raise_if_any(problems + label_problems(volume.label, job.classes, case.label or case.image))
    label, notes = convert_label(volume.label, job.classes)
    return image, label, notes


def _record_entry(job: ConversionJob, volume: Volume, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "role": job.role,
        "patient": job.case.patient,
        "sources": [_file_entry(file) for file in job.case.sources(job.role)],
        "spacing_zyx_mm": [float(size) for size in volume.spacing.xyz_mm[::-1]],
        "spacing_source": volume.spacing.source,
        "spacing_is_nominal": volume.spacing.source == "nominal",
        "notes": [*job.case.notes, *volume.notes, *notes],
    }


def _file_entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"file": str(file.absolute()), "bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
