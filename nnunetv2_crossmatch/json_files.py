"""JSON files as they come: read strictly, and compared with the form that their reader needs.

Limit: says what a value is, not what it means; nothing is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from types import EllipsisType, NoneType
from typing import Any, NoReturn

from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem, file_not_read, system_reason, unread_reason

Form = Any
"""What a value must be: ``int``, ``float`` (any number; both below 2**63 in size), ``str``, ``None``,
``bool``, ``dict``, ``list`` or ``object`` (anything); ``[form]`` for a list; ``{"key": form, "key?": form, ...: form}``
for an object with a key that is needed, one that may be missing, and the form of all others (without the last, others
are not looked at); a tuple for one of several forms, an empty one for what may not be there."""
LARGEST = 2**63
DEEPEST = 100
SHOWN = 60
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
NAMES = {
    dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true or false",
}  # fmt: skip


class MissingFileError(InputError):
    """Raised where a file does not exist."""


def read_json(
    file: Path, form: Form, fix: str, what: str = "unusable JSON", byte_order_mark: bool = False, nan: bool = False
) -> Any:
    """The content of ``file``, UTF-8, which has the form ``form``.

    Args:
        fix: the remedy of all errors but those of access.
        what: begins the message of an error in the content.
        byte_order_mark: accept one, for files that nnU-Net, which does not, never reads.
        nan: accept NaN and infinity where ``form`` asks for no number; nnU-Net writes them into plans.

    Raises:
        MissingFileError: no such file.
        NotReadError: it could not be read.
        InputError: it is no JSON, has a key twice, or another form.
    """
    try:
        if not file.is_file() and file.exists():
            raise ValueError("it is a folder, a pipe or a device")
        content = _parsed(file.read_bytes(), byte_order_mark, nan)
        check_form(content, form)
    except FileNotFoundError as error:
        raise MissingFileError(Problem("file missing", file, system_reason(error), fix)) from None
    except (OSError, MemoryError) as error:
        raise NotReadError(file_not_read(file, unread_reason(error) or str(error))) from error
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(what, file, _reason(error), fix)) from error
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)


def check_form(value: Any, form: Form) -> None:
    """Do nothing if ``value`` has the form ``form``.

    Raises:
        ValueError: it does not; the message names the place.
    """
    _check(value, form, "")


def _parsed(content: bytes, byte_order_mark: bool, nan: bool) -> Any:
    text = content.decode("utf-8-sig" if byte_order_mark else "utf-8")
    if not text.strip():
        raise ValueError("the file is empty")
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark; save it as UTF-8 without one")
    constant, number = (None, None) if nan else (_refuse_number, _finite)
    parsed = json.loads(text, object_pairs_hook=_without_doubled_keys, parse_constant=constant, parse_float=number)
    _check_depth(parsed)
    if HALF_CHARACTER.search(text):
        json.dumps(parsed, ensure_ascii=False).encode()  # raises for half a character, which no file name can have
    return parsed


def _check_depth(parsed: Any) -> None:
    """Raise ``RecursionError`` for more than :data:`DEEPEST` levels: those who compare and copy them recurse, too."""
    level = [parsed]
    for _ in range(DEEPEST):
        level = [part for one in level if isinstance(one, dict | list) for part in _parts(one)]
        if not level:
            return
    raise RecursionError


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _without_doubled_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{_short(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return content


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def _check(value: Any, form: Form, place: str) -> None:
    if isinstance(form, tuple):
        _check_one_of(value, form, place)
    elif isinstance(form, dict):
        _check_object(value, form, place)
    elif isinstance(form, list):
        _check_plain(value, list, place)
        for number, entry in enumerate(value):
            _check(entry, form[0], f"{place}/{number}")
    else:
        _check_plain(value, NoneType if form is None else form, place)


def _check_one_of(value: Any, forms: Iterable[Form], place: str) -> None:
    reasons = [f"{_short(place)} is unknown"]
    for form in forms:
        try:
            return _check(value, form, place)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(max(reasons, key=lambda reason: reason.split(":")[0].count("/")))


def _check_object(value: Any, form: dict[str | EllipsisType, Form], place: str) -> None:
    _check_plain(value, dict, place)
    named = {key.removesuffix("?") for key in form if isinstance(key, str)}
    if missing := [_short(f"{place}/{key}") for key in form if key in named and key not in value]:
        raise ValueError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    for key, inner in form.items():
        if isinstance(key, EllipsisType):
            for other in value.keys() - named:
                _check(value[other], inner, f"{place}/{other}")
        elif key.endswith("?"):
            if key[:-1] in value:
                _check(value[key[:-1]], inner, f"{place}/{key[:-1]}")
        else:
            _check(value[key], inner, f"{place}/{key}")


def _check_plain(value: Any, kind: type, place: str) -> None:
    if kind in (int, float):
        fits = type(value) in (int, kind) and abs(value) < LARGEST  # NaN is not, and True is no number
    else:
        fits = isinstance(value, kind)
    if not fits:
        found = NAMES.get(type(value), "null") if isinstance(value, dict | list) else json.dumps(value)
        if not place and kind is dict:
            raise ValueError(f"not a JSON object, but {_short(found)}")
        where = _short(place) if place else "the file"
        raise ValueError(f"{where}: {_short(found)} instead of {NAMES.get(kind, 'null')}")


def _short(text: str) -> str:
    plain = text.encode("utf-8", "backslashreplace").decode()
    line = "".join(letter if letter.isprintable() else "?" for letter in plain.removeprefix("/"))
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
