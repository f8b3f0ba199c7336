"""The cases of a conversion, read, checked and written in parallel, with every problem of every case told at once.

Limit: one case at a time per process; what makes cases a data set is in ``conversion``.
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

from nnunetv2_crossmatch.dataset_conversion.cases import Job, Outcome
from nnunetv2_crossmatch.dataset_conversion.checks import as_image, as_label, image_problems, label_problems
from nnunetv2_crossmatch.dataset_conversion.reading import Volume
from nnunetv2_crossmatch.dataset_conversion.writing import write_case
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any


def convert_cases(jobs: Sequence[Job], processes: int) -> dict[str, dict[str, Any]]:
    """Convert all cases; returns their entries in the conversion record by case name, sorted.

    Raises:
        InputError: with the problems of all cases, or because a worker was killed.
        OSError: from writing; the cases that wait are not begun then.
    """
    outcomes = _outcomes(jobs, min(processes, len(jobs)))
    progress = tqdm(outcomes, desc="converting", unit="case", total=len(jobs))
    finished = sorted(progress, key=lambda outcome: outcome.identifier)
    raise_if_any([problem for outcome in finished for problem in outcome.problems])
    return {outcome.identifier: outcome.entry for outcome in finished}


def convert_case(job: Job) -> Outcome:
    """Read, check and write one case; problems of the input come back, errors of the disk are raised."""
    case = job.case
    try:
        volume = _read(job)
        image, label, notes = _checked(volume, job)
    except InputError as error:
        return Outcome(case.identifier, problems=error.problems)
    is_nominal = volume.spacing.source == "nominal"
    write_case(job.target, job.role, case.identifier, image, label, volume.affine, is_nominal)
    return Outcome(case.identifier, _entry(job, volume, notes))


def _outcomes(jobs: Sequence[Job], processes: int) -> Iterator[Outcome]:
    if processes == 1:
        yield from map(convert_case, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=_end_with_parent)
    try:
        yield from (future.result() for future in as_completed([pool.submit(convert_case, job) for job in jobs]))
    except BrokenProcessPool as error:
        fix = "run again with fewer processes: -np 1"
        raise InputError(Problem("worker process killed", "", "perhaps the memory was full", fix)) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed: left alone, it would wait for work for ever."""
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in workers only"
    parent.join()
    os._exit(1)


def _read(job: Job) -> Volume:
    case, with_label = job.case, job.role != "unlabeled"
    if with_label and case.label is None:
        detail = f"case {case.identifier} is in the list of {job.role} cases"
        fix = 'add the label file, or put the case into the "unlabeled" list (--splits FILE)'
        raise InputError(Problem("label missing", case.image, detail, fix))
    return job.read(case, with_label)


def _checked(volume: Volume, job: Job) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Image and label as they are stored, and notes; raises with the problems of both."""
    case, image = job.case, as_image(volume.image)
    problems = image_problems(image, case.image)
    if volume.label is None:
        raise_if_any(problems)
        return image, None, ()
    raise_if_any(problems + label_problems(volume.label, job.classes, case.label or case.image))
    label, notes = as_label(volume.label, job.classes)
    return image, label, notes


def _entry(job: Job, volume: Volume, notes: tuple[str, ...]) -> dict[str, Any]:
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
