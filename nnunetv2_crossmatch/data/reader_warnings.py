"""Warnings of image readers, collected while files are read, and told once per kind instead of once per file.

Limit: what SimpleITK warns of, what nnU-Net's readers print, and what this package notes itself.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import SimpleITK

ITK_PREFIX = re.compile(r"WARNING: In .*, line \d+\n\w+ \(0x\w+\): ")
PRINTED = re.compile(r"^WARNING!? *(.*)", re.MULTILINE)


class _ItkWarnings(SimpleITK.LoggerBase):
    """SimpleITK's warnings in a list instead of on stderr."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def DisplayWarningText(self, text: str) -> None:
        """One warning; called by SimpleITK."""
        self.found.append(ITK_PREFIX.sub("", text).strip())


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings of all threads of this process; the list is complete when the block ends.

    Everything else that is printed to stdout within the block is dropped.
    """
    found: list[str] = []
    logger, printed = _ItkWarnings(found), io.StringIO()
    previous = logger.SetAsGlobalITKLogger()
    try:
        with redirect_stdout(printed):
            yield found
    finally:
        previous.SetAsGlobalITKLogger()
        found += PRINTED.findall(printed.getvalue())


def by_kind(found: Iterable[tuple[str, Sequence[Path]]]) -> list[str]:
    """One line per kind of warning, with the number of files and the first one.

    Args:
        found: warnings, each with the files that were read, which its text may name.
    """
    kinds: dict[str, dict[Path, None]] = {}
    for text, files in found:
        named = next((file for file in files if str(file) in text), files[0])
        kinds.setdefault(_without_names(text, files), {})[named] = None
    return [f"warning: {kind} ({_count(files)} {next(iter(files))})" for kind, files in kinds.items()]


def print_warnings(found: Iterable[tuple[str, Sequence[Path]]]) -> None:
    """Print :func:`by_kind` to stderr."""
    for line in by_kind(found):
        print(line, file=sys.stderr, flush=True)


def _without_names(text: str, files: Sequence[Path]) -> str:
    names = [str(file) for file in files]
    for name in (repr(names), *(repr([name]) for name in names), *names):
        text = text.replace(name, "the file")
    return text


def _count(files: dict[Path, None]) -> str:
    return "in" if len(files) == 1 else f"{len(files)} files, the first is"
