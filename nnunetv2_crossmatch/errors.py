"""Errors in the user's input: one line per error with its fix, and exit code 2.

Limit: bugs of this package stay ordinary exceptions with a traceback (exit code 1).
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

DEBUG_VARIABLE = "NNUNETV2_CROSSMATCH_DEBUG"
ABOUT_CONTENT = (None, errno.EINVAL)
"""``errno`` of an ``OSError`` that altered bytes cause: readers raise it themselves, or seek to impossible places."""
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORTAGES = ("bad_alloc", "allocate memory", "enough memory", "out of memory", os.strerror(errno.EMFILE).lower())
"""What libraries write that have no class of errors for a shortage."""


@dataclass(frozen=True)
class Problem:
    """One error, printed as ``error: <what> in <where>: <detail>. Fix: <fix>`` (``where`` may be empty)."""

    what: str
    where: str | Path
    detail: str
    fix: str

    def __str__(self) -> str:
        place = f" in {self.where}" if str(self.where) else ""
        return f"error: {self.what}{place}: {self.detail}. Fix: {self.fix}"


class InputError(Exception):
    """Raised for bad input, with all problems of a run, so that the user can fix them at once."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class NotReadError(InputError):
    """Raised where the bytes of a file could not be read: nothing is known about them, and nothing may be replaced."""


class UnsupportedError(InputError, NotImplementedError):
    """Raised for a feature of nnU-Net that this package does not support."""


def raise_if_any(problems: list[Problem]) -> None:
    """Raise one :class:`InputError` with all ``problems``; do nothing if the list is empty."""
    if problems:
        raise InputError(*problems)


def run_all(steps: Iterable[Callable[[], T]]) -> list[T]:
    """Call all ``steps`` and return their results.

    Raises:
        InputError: at least one step raised it; contains the problems of all steps, without duplicates.
    """
    results: list[T] = []
    problems: list[Problem] = []
    for step in steps:
        try:
            results.append(step())
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    raise_if_any(problems)
    return results


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make ``main`` a console script that prints an :class:`InputError` to stderr and exits with code 2.

    The environment variable ``NNUNETV2_CROSSMATCH_DEBUG=1`` shows the traceback instead.
    """

    @functools.wraps(main)
    def run() -> None:
        install_excepthook()
        main()

    return run


def install_excepthook() -> None:
    """Print an uncaught :class:`InputError` without traceback and exit with code 2, also in nnU-Net's commands.

    nnU-Net's error for an environment variable that is not set, and any error of a folder without permission or a full
    disk, is printed in the same way: whatever was to be written there, the remedy is the same.
    """
    previous = sys.excepthook
    if getattr(previous, "is_crossmatch_hook", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = error if isinstance(error, InputError) else _as_input_error(error)
        if message is None or os.environ.get(DEBUG_VARIABLE) == "1":
            previous(kind, error, traceback)
            return
        print(message, file=sys.stderr)
        sys.exit(2)

    hook.is_crossmatch_hook = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def unread_reason(error: BaseException) -> str | None:
    """Why a file could not be read, if ``error`` says nothing about its bytes; None if it may be about them.

    No permission, a fault of the device, too many open files or too little memory is no sign of a damaged file.
    """
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.errno not in ABOUT_CONTENT:
        return error.strerror or str(error)
    lines = str(error).splitlines()
    return next((line.strip() for line in lines if any(text in line.lower() for text in SHORTAGES)), None)


def file_not_read(file: Path, reason: str) -> Problem:
    """Problem: the bytes of ``file`` could not be read, and nothing is known about them."""
    return Problem("file not read", file, f"{reason}; this says nothing about its content", "mend that, then run again")


def command_line(*words: object) -> str:
    """A command as a user can copy it into a shell: all printed commands are built here, so that all are quoted."""
    return shlex.join(map(str, words))


def variable_not_set(variable: str) -> Problem:
    """Problem: a required environment variable is not set."""
    return Problem("variable not set", "", variable, f'export {variable}="/path/to/your/{variable}"')


def access_problem(error: OSError, where: str | Path) -> Problem | None:
    """Problem of a place that may not be read or written, or of a full disk; None if ``error`` is another one."""
    reason = error.strerror or str(error)
    if error.errno in NO_ACCESS:
        return Problem("no access", where, reason, "mend the permissions, or use another folder; then run again")
    if error.errno in FULL_DISK:
        return Problem("disk full", where, reason, "make room, then run again")
    return None


def _as_input_error(error: BaseException) -> InputError | None:
    """:class:`InputError` in place of errors that other code raises for a user's mistake; None for any other error."""
    if isinstance(error, OSError):
        problem = access_problem(error, error.filename or "")
        return InputError(problem) if problem else None
    found = re.match(r"(nnUNet_\w+) is not defined", str(error)) if isinstance(error, RuntimeError) else None
    return InputError(variable_not_set(found.group(1))) if found else None
