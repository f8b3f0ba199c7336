"""Split lists: read from JSON, checked, and assigned to the cases of a folder.

Limit: names only; no image is read.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.folders import is_file_name
from nnunetv2_crossmatch.json_files import read_json

ROLES = ("labeled", "unlabeled", "val", "test")
KEYS = ("train", *ROLES)
SPLITS_FORMAT = """\
A splits file is JSON:
  {"train": [...], "val": [...], "test": [...], "labeled": {"8": [...]}}
Each list holds case names (ACDC: patients or single frames) or is the name of a text file with one name per
line, beside the JSON file. "labeled" maps numbers to lists, or is one list; where it does not give the number
asked for, the first N of "train" are taken. "unlabeled" is the rest of "train" unless it is given. Only cases
that are "unlabeled" may come without a label. "train", "val", "test" and "unlabeled" may be left out."""

PatientOf = Callable[[str], str]


def read_splits(file: Path, number: int | None, patient_of: PatientOf) -> dict[str, list[str]]:
    """Entries (case or patient names) of each role in :data:`ROLES`; no patient has two roles.

    Args:
        file: splits file in the format :data:`SPLITS_FORMAT`.
        number: requested number of labeled patients; ``None`` for a ``labeled`` entry that is one list.
        patient_of: function from an entry to its patient's name.

    Raises:
        InputError: wrong format, an entry twice in a list, a patient in two roles, or training cases without role.
    """
    content = load_splits(file)
    if unknown := sorted(set(content) - set(KEYS)):
        detail = f"unknown keys {', '.join(unknown)}"
        raise InputError(Problem("splits file of another form", file, detail, "see the form in --help"))
    lists = {key: _entries(content[key], file, key) for key in KEYS if key in content and key != "labeled"}
    train = lists.get("train", [])
    labeled = _labeled_entries(content.get("labeled", {}), number, train, file, patient_of)
    labeled_patients = {patient_of(entry) for entry in labeled}
    rest = [entry for entry in train if patient_of(entry) not in labeled_patients]
    roles = {
        "labeled": labeled,
        "unlabeled": lists.get("unlabeled", rest),
        "val": lists.get("val", []),
        "test": lists.get("test", []),
    }
    outside = _training_list_problems(roles, train, file, patient_of)
    raise_if_any(
        [
            *_repeated_name_problems({**lists, "labeled": labeled}, file),
            *_overlap_problems(roles, file, patient_of),
            *outside,
        ]
    )
    return roles


def check_roles(roles: Mapping[str, Sequence[str]], file: Path, patient_of: PatientOf) -> None:
    """Do nothing where each entry stands in one list, once.

    Raises:
        InputError: an entry twice in a list, or a patient in two roles; ``file`` is named.
    """
    raise_if_any([*_repeated_name_problems(roles, file), *_overlap_problems(roles, file, patient_of)])


def assign_roles(
    patients: Mapping[str, str],
    roles: Mapping[str, Sequence[str]],
    incomplete: Sequence[str],
    allow_missing: bool,
    where: Path,
) -> tuple[dict[str, str], list[str]]:
    """Role of each case of a folder, and the listed names that are missing in the folder.

    Args:
        patients: case name -> patient name, of all cases in the folder.
        roles: role -> entries, from :func:`read_splits`.
        incomplete: names of missing frames of patients that are present.
        allow_missing: continue without the missing names.
        where: the folder, for error messages.

    Raises:
        InputError: a case is in no list; or a listed name is missing and ``allow_missing`` is false.
    """
    role_of = {entry: role for role, entries in roles.items() for entry in entries}
    assigned = {case: role_of.get(case) or role_of.get(patient, "") for case, patient in patients.items()}
    present = {*patients, *patients.values()}
    missing = [*(entry for entry in role_of if entry not in present), *incomplete]
    problems = []
    if left_out := [case for case, role in assigned.items() if not role]:
        fix = "name them in a list of your own (--splits FILE; the form is in --help), or move them out of the folder"
        problems.append(Problem("cases that no list names", where, ", ".join(left_out), fix))
    if missing and not allow_missing:
        fix = "add them to the folder, or go on without them: --allow-missing"
        problems.append(Problem(f"{len(missing)} listed cases missing", where, ", ".join(missing), fix))
    if not problems and "labeled" not in assigned.values():
        problems.append(Problem("no labeled case", where, "none of them is there", "choose others with --splits FILE"))
    raise_if_any(problems)
    return assigned, missing


def load_splits(file: Path) -> dict[str, Any]:
    """The JSON object in a splits file.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    what, fix = "splits file of another form", "see the form in --help"
    content: dict[str, Any] = read_json(file, dict, fix, what, byte_order_mark=True)
    return content


def _entries(value: object, file: Path, key: str) -> list[str]:
    if isinstance(value, str):
        if not is_file_name(value):
            detail, fix = f'"{key}" is {value!r}', "name a text file in the same folder"
            raise InputError(Problem("list in another folder", file, detail, fix))
        value = _read_lines(file.parent / value)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InputError(
            Problem("splits file of another form", file, f'"{key}" is not a list of names', "see the form in --help")
        )
    return [entry.strip() for entry in value if entry.strip()]


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(Problem("list file unreadable", file, str(error), "one case name per line, UTF-8")) from error


def _labeled_entries(
    value: object, number: int | None, train: list[str], file: Path, patient_of: PatientOf
) -> list[str]:
    if number is not None and number < 1:
        raise InputError(Problem("no labeled case", "", f"--labeled {number}", "give a number from 1 on"))
    if not isinstance(value, dict):
        return _check_count(_entries(value, file, "labeled"), number, file, patient_of)
    if number is None:
        detail = 'it has no plain "labeled" list'
        raise InputError(Problem("number of labeled cases missing", file, detail, "give --labeled N"))
    if str(number) in value:
        return _check_count(_entries(value[str(number)], file, f"labeled {number}"), number, file, patient_of)
    first = set(list(dict.fromkeys(map(patient_of, train)))[:number])
    return _check_count([entry for entry in train if patient_of(entry) in first], number, file, patient_of)


def _check_count(entries: list[str], number: int | None, file: Path, patient_of: PatientOf) -> list[str]:
    count = len({patient_of(entry) for entry in entries})
    if count == 0 or number not in (None, count):
        detail = f"{count} are listed, {number or 'at least 1'} asked for"
        raise InputError(Problem("other number of labeled cases", file, detail, "change --labeled or the list"))
    return entries


def _repeated_name_problems(lists: Mapping[str, Sequence[str]], file: Path) -> list[Problem]:
    found = {key: [entry for entry, count in Counter(entries).items() if count > 1] for key, entries in lists.items()}
    fix = "name each case once"
    return [Problem(f'names repeated in "{key}"', file, ", ".join(names), fix) for key, names in found.items() if names]


def _overlap_problems(roles: Mapping[str, Sequence[str]], file: Path, patient_of: PatientOf) -> list[Problem]:
    patients = {role: dict.fromkeys(map(patient_of, entries)) for role, entries in roles.items()}
    pairs = itertools.combinations(ROLES, 2)
    shared = {(a, b): [name for name in patients[a] if name in patients[b]] for a, b in pairs}
    fix = "keep each patient in one list"
    return [
        Problem(f'lists "{first}" and "{second}" overlap', file, ", ".join(names), fix)
        for (first, second), names in shared.items()
        if names
    ]


def _training_list_problems(
    roles: Mapping[str, Sequence[str]], train: Sequence[str], file: Path, patient_of: PatientOf
) -> list[Problem]:
    if not train:
        return []
    trained = dict.fromkeys(map(patient_of, train))
    named = dict.fromkeys(map(patient_of, [*roles["labeled"], *roles["unlabeled"]]))
    problems = []
    if foreign := [name for name in named if name not in trained]:
        fix = 'add them to "train", or leave "train" out'
        problems.append(Problem('cases not in "train"', file, ", ".join(foreign), fix))
    if left_out := [name for name in trained if name not in named]:
        fix = 'put each case of "train" into "labeled" or "unlabeled"'
        problems.append(Problem("training cases left out", file, ", ".join(left_out), fix))
    return problems
