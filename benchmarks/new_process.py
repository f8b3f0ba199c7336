"""Runs a function in a new process, so that its peak memory can be measured separately; and measures that.

Limit: a CPU's memory is measured on Linux.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import torch

Result = TypeVar("Result")


def run_in_new_process(work: Callable[..., Result], *arguments: object) -> Result:
    """Result of ``work(*arguments)`` in a new process; an error or crash of that process is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def run_for_memory(work: Callable[..., Result], *arguments: object) -> Result:
    """As :func:`run_in_new_process`, with tensors on pages of their own, so that the resident set is what is used."""
    # Freed heap memory would count, and tensors of up to 32 MiB would be placed on the heap over time.
    with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="262144"):
        for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
            os.environ.pop(name, None)
        return run_in_new_process(work, *arguments)


def growth_of_memory(work: Callable[[], object], device: torch.device, times: int) -> int:
    """Bytes by which the peak exceeds the memory before ``work`` ran ``times`` times; once in a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    for _ in range(times):
        work()
    return (torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")) - before


def resident(entry: str) -> int:
    """Bytes of an entry of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))
