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
import traceback
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
NOT_CONTENT = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOMEM, errno.ETIMEDOUT)
SHORTAGES = (
    "bad_alloc",
    "allocate memory",
    "enough memory",
    "out of memory",
    *(os.strerror(code).lower() for code in NOT_CONTENT),
)
"""What libraries write that have no class of errors for a shortage, or for a fault of the disk."""
CHUNK_BYTES = 1 << 20
HOST_JSON_READER = "load_json"


@dataclass(frozen=True)
class Problem:
    """One error, printed as ``error: <what> in <where>: <detail>. Fix: <fix>`` (``where`` may be empty).

    Names come from files of others: line ends and what controls a terminal are printed as their numbers.
    """

    what: str
    where: str | Path
    detail: str
    fix: str

    def __str__(self) -> str:
        place = f" in {self.where}" if str(self.where) else ""
        return _printable(f"error: {self.what}{place}: {self.detail}. Fix: {self.fix}")


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


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

    nnU-Net's errors for an environment variable that is not set, and for a JSON file that it cannot read, and any error
    of a folder without permission or a full disk, are printed in the same way: whatever was to be written there, the
    remedy is the same.
    """
    previous = sys.excepthook
    if getattr(previous, "is_crossmatch_hook", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = error if isinstance(error, InputError) else _as_input_error(error)
        if message is None or os.environ.get(DEBUG_VARIABLE) == "1":
            previous(kind, error, trace)
            return
        print(message, file=sys.stderr)
        sys.exit(2)

    hook.is_crossmatch_hook = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def system_reason(error: OSError) -> str:
    """What the system says of ``error``, or, if other code raised it with words of its own, these."""
    return error.strerror or str(error)


def unread_reason(error: BaseException, file: Path | None = None) -> str | None:
    """Why a file could not be read, if ``error`` says nothing about its bytes; None if it may be about them.

    No permission, a fault of the device, too many open files or too little memory is no sign of a damaged file. Many
    libraries tell such a fault as if it was one of the content: the bytes of ``file``, if given, are read once more.
    """
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.errno not in ABOUT_CONTENT:
        return system_reason(error)
    lines = str(error).splitlines()
    told = next((line.strip() for line in lines if any(text in line.lower() for text in SHORTAGES)), None)
    return told or (_reading_fault(file) if file is not None else None)


def _reading_fault(file: Path) -> str | None:
    """Why the bytes of ``file`` cannot be read; None if they can."""
    try:
        with file.open("rb", buffering=0) as stream:
            while stream.read(CHUNK_BYTES):
                pass
    except OSError as error:
        return system_reason(error)
    return None


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
    reason = system_reason(error)
    if error.errno in NO_ACCESS:
        return Problem("no access", where, reason, "mend the permissions, or use another folder; then run again")
    if error.errno in FULL_DISK:
        return Problem("disk full", where, reason, "make room, then run again")
    return None


def _as_input_error(error: BaseException) -> InputError | None:
    """:class:`InputError` in place of errors that other code raises for a user's mistake; None for any other error."""
    if found := re.match(r"(nnUNet_\w+) is not defined", str(error)) if isinstance(error, RuntimeError) else None:
        return InputError(variable_not_set(found.group(1)))
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    files = (Path(frame.f_locals["file"]) for frame in frames if frame.f_code.co_name == HOST_JSON_READER)
    if (file := next(files, None)) is not None:
        reason = unread_reason(error)
        fault = Problem("unusable JSON", file, str(error) or type(error).__name__, "restore the file")
        return InputError(file_not_read(file, reason) if reason else fault)
    problem = access_problem(error, error.filename or "") if isinstance(error, OSError) else None
    return InputError(problem) if problem else None
