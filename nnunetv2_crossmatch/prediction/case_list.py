"""A list of cases in a text file, a name per line, as the page of a review gives it.

Limit: blank lines and lines that begin with # are skipped; names are compared as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any

LARGEST_BYTES = 1 << 24


def read_case_list(file: Path) -> list[str]:
    """The names in ``file``, without repetition.

    Raises:
        InputError: there is no such file, it is no text in UTF-8, or it names no case.
    """
    what, fix = "unusable list of cases", "give a text file with the name of a case on each line"
    try:
        if file.is_file() and file.stat().st_size > LARGEST_BYTES:
            raise InputError(Problem(what, file, "it is larger than any list", fix))
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(Problem("file missing", file, "no such file", "check --only")) from None
    except IsADirectoryError:
        raise InputError(Problem(what, file, "it is a folder", fix)) from None
    except UnicodeDecodeError:
        raise InputError(Problem(what, file, "it is no text in UTF-8", fix)) from None
    lines = (line.strip() for line in text.splitlines())
    names = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise InputError(Problem(what, file, "it names no case", fix))
    return names


def check_known(names: Collection[str], known: Collection[str], file: Path, images: Path) -> None:
    """Do nothing if all ``names``, read from ``file``, are among the cases ``known`` in the folder ``images``.

    Raises:
        InputError: all others are named, each with the case that it may stand for.
    """
    problems = []
    for name in (name for name in names if name not in known):
        near = get_close_matches(name, known, n=1)
        fix = f"write {near[0]}, or remove the line" if near else "remove the line"
        problems.append(Problem("unknown case", file, f"{name} is not in {images}", fix))
    raise_if_any(problems)
