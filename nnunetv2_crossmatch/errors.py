"""How mistakes in the user's input are told: one line per mistake, each with its remedy, and exit code 2.

Limit: faults in this package itself stay ordinary exceptions with a traceback (exit code 1).
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

DEBUG_VARIABLE = "NNUNETV2_CROSSMATCH_DEBUG"


@dataclass(frozen=True)
class Problem:
    """One mistake: ``error: <what> in <where>: <detail>. Fix: <fix>`` (``where`` may be empty)."""

    what: str
    where: str | Path
    detail: str
    fix: str

    def __str__(self) -> str:
        place = f" in {self.where}" if str(self.where) else ""
        return f"error: {self.what}{place}: {self.detail}. Fix: {self.fix}"


class InputError(Exception):
    """Raised for bad input; carries every problem found in one run, so that the user mends all of them at once."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class UnsupportedError(InputError, NotImplementedError):
    """Raised where nnU-Net can do something that this package cannot; says what and why in one line."""


def raise_if_any(problems: list[Problem]) -> None:
    """Raise one :class:`InputError` with all ``problems``; do nothing if the list is empty."""
    if problems:
        raise InputError(*problems)


def collected(steps: Iterable[Callable[[], T]]) -> list[T]:
    """Results of all ``steps``; if some refuse their input, one :class:`InputError` with all problems, each once."""
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
    """Make ``main`` a console script: an :class:`InputError` becomes its lines on stderr and exit code 2.

    With the environment variable ``NNUNETV2_CROSSMATCH_DEBUG=1`` the traceback is shown instead.
    """

    @functools.wraps(main)
    def run() -> None:
        install_excepthook()
        main()

    return run


def install_excepthook() -> None:
    """Show uncaught :class:`InputError` as its lines, exit code 2; also inside the host's own commands.

    The host's error for one of its variables that is not set is told in the same way.
    """
    previous = sys.excepthook
    if getattr(previous, "is_crossmatch_hook", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        told = error if isinstance(error, InputError) else _unset_variable(error)
        if told is None or os.environ.get(DEBUG_VARIABLE) == "1":
            previous(kind, error, traceback)
            return
        print(told, file=sys.stderr)
        sys.exit(2)

    hook.is_crossmatch_hook = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def not_set(variable: str) -> Problem:
    """The problem of an environment variable that is needed and not set."""
    return Problem("variable not set", "", variable, f'export {variable}="/path/to/your/{variable}"')


def _unset_variable(error: BaseException) -> InputError | None:
    """The host's complaint about a variable, in our words."""
    found = re.match(r"(nnUNet_\w+) is not defined", str(error)) if isinstance(error, RuntimeError) else None
    return InputError(not_set(found.group(1))) if found else None
