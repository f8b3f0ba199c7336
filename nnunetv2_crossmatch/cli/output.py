"""Printing of results whose files have been written already.

Limit: stdout only; errors are printed by ``errors``.
"""

from __future__ import annotations

import os
import sys

from nnunetv2_crossmatch.errors import InputError, Problem, system_reason


def print_result(text: str, fix: str) -> None:
    """Print ``text``; characters that stdout cannot encode are replaced by ``?``.

    Args:
        fix: where the reader finds the result if it cannot be printed.

    Raises:
        InputError: stdout cannot be written to, for example because of a full disk or a closed pipe.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
    except OSError as error:
        _discard_output()
        raise InputError(Problem("output not printed", "", system_reason(error), fix)) from error


def _discard_output() -> None:
    """Redirect stdout to the null device, so that the flush at exit does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
