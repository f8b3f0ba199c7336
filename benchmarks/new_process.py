"""Runs a function in a new process, so that its peak memory can be measured separately."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def run_in_new_process(work: Callable[..., Result], *arguments: object) -> Result:
    """Result of ``work(*arguments)`` in a new process; an error or crash of that process is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()
