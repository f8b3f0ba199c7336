"""Data sets in plain folders: images, labels and split lists become a raw nnU-Net data set.

    python -m benchmarks.protocol.folder_data -i FOLDER -d 503 --name Half --splits OUT/splits.json

FOLDER holds ``images/`` and ``labels/``, or nnU-Net's ``imagesTr/``, ``labelsTr/`` and so on, and a ``splits.json``.
Limit: files are copied as they are; of labels only the values are looked at, where no dataset.json names them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, determine_reader_writer_from_file_ending

from nnunetv2_crossmatch.data.raw_cases import images_by_case
from nnunetv2_crossmatch.dataset_conversion.splits import (
    KEYS,
    ROLES,
    assign_roles,
    check_roles,
    load_splits,
    read_splits,
)
from nnunetv2_crossmatch.dataset_conversion.writing import FOLDER_ENDINGS, new_dataset_name
from nnunetv2_crossmatch.errors import InputError, Problem, command, command_line, raise_if_any
from nnunetv2_crossmatch.folders import atomic_folder, raw_folder, write_json
from nnunetv2_crossmatch.json_files import MissingFileError, read_json

SPLITS = "splits.json"
DESCRIPTION = "dataset.json"
RECORD = "conversion.json"
PARTS = ("", "Tr", "Un", "Val", "Ts")
FORM = 'use the form {"labeled": [...], "unlabeled": [...], "validation": [...], "labeled_4": [...]}'


@dataclass(frozen=True)
class FolderData:
    """Files of a folder by case: images channel by channel, labels where there are any; ``description`` may be {}."""

    folder: Path
    file_ending: str
    images: Mapping[str, Sequence[Path]]
    labels: Mapping[str, Path]
    description: Mapping[str, Any]


def read_folder(folder: Path) -> FolderData:
    """What ``folder`` holds.

    Raises:
        InputError: it is missing, holds no image named ``<case>_0000<ending>``, several endings or a case twice, or its
            dataset.json is no JSON.
    """
    if not folder.is_dir():
        raise InputError(Problem("folder missing", folder, "given with --data", "check the path"))
    description = _description(folder / DESCRIPTION)
    ending = description.get("file_ending") or _file_ending(folder)
    images: dict[str, list[Path]] = {}
    labels: dict[str, Path] = {}
    for part in PARTS:
        found = images_by_case(folder / f"images{part}", ending)
        if twice := found.keys() & images.keys():
            detail = f"{', '.join(sorted(twice))} in images{part} and in another folder"
            raise InputError(Problem("case twice", folder, detail, "remove one of the two"))
        images |= found
        labels |= {file.name.removesuffix(ending): file for file in (folder / f"labels{part}").glob(f"*{ending}")}
    if not images:
        fix = "name images <case>_0000<ending> in images/ or imagesTr/"
        raise InputError(Problem("no images", folder, f"none ends with _0000{ending}", fix))
    return FolderData(folder, ending, images, labels, description)


def _description(file: Path) -> dict[str, Any]:
    form = {"labels?": {...: (int, [int])}, "channel_names?": {...: str}, "file_ending?": str}
    try:
        content: dict[str, Any] = read_json(file, form, "mend it, or remove it", "dataset.json unreadable", nan=True)
    except MissingFileError:
        return {}
    return content


def _file_ending(folder: Path) -> str:
    """The one ending of nnU-Net's readers that the images carry after their channel number."""
    known = {ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}
    files = [file.name for part in PARTS for file in (folder / f"images{part}").glob("*_0000.*")]
    found = sorted({name[name.rindex("_0000.") + 5 :] for name in files} & known)
    if len(found) != 1:
        detail = f"images end with {', '.join(found) or 'nothing that nnU-Net reads'}"
        raise InputError(Problem("no single file ending", folder, detail, 'give "file_ending" in a dataset.json'))
    return found[0]


def read_lists(file: Path, number: int) -> dict[str, list[str]]:
    """Cases of each role from a split file: the form of the converters, or :data:`FORM`.

    In the second, ``labeled_<number>`` or else the first ``number`` of ``labeled`` are labeled; the others of
    ``labeled`` become unlabeled.

    Raises:
        InputError: not of the form, too few labeled cases, or a case twice.
    """
    content = load_splits(file)
    plain = isinstance(content.get("labeled"), list) and "train" not in content
    if set(content) <= set(KEYS) and not plain:
        return read_splits(file, number, str)
    known = {"labeled", "unlabeled", "validation", "val", "test"}
    if unknown := sorted(key for key in content if key not in known and not re.fullmatch(r"labeled_\d+", key)):
        raise InputError(Problem("splits file of another form", file, f"unknown keys {', '.join(unknown)}", FORM))
    own = f"labeled_{number}"
    lists = {key: content.get(key, []) for key in ("labeled", "unlabeled", "test", own)}
    lists["val"] = content.get("validation", content.get("val", []))
    raise_if_any(list(_form_problems(lists, file)))
    chosen = lists[own] or lists["labeled"][:number]
    others = [case for case in lists["labeled"] if case not in chosen]
    if len(chosen) != number or not set(chosen) <= set(lists["labeled"]):
        detail = f"{len(chosen)} of {len(lists['labeled'])} are listed for {own}"
        raise InputError(Problem("other number of labeled cases", file, detail, "change --labeled or the list"))
    check_roles({"labeled": [*chosen, *others], **{role: lists[role] for role in ROLES[1:]}}, file, str)
    return {"labeled": chosen, "unlabeled": [*others, *lists["unlabeled"]], "val": lists["val"], "test": lists["test"]}


def _form_problems(lists: Mapping[str, object], file: Path) -> Iterator[Problem]:
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(case, str) for case in value):
            yield Problem("splits file of another form", file, f'"{key}" is not a list of names', FORM)


def roles_of(
    data: FolderData, lists: Mapping[str, Sequence[str]], allow_missing: bool
) -> tuple[dict[str, str], list[str]]:
    """Role of each case, and the listed ones that the folder lacks.

    Raises:
        InputError: cases that no list names, missing ones unless allowed, or a case without the label that its role
            needs.
    """
    roles, missing = assign_roles({case: case for case in data.images}, lists, [], allow_missing, data.folder)
    bare = [case for case, role in roles.items() if role != "unlabeled" and case not in data.labels]
    if bare:
        fix = (
            f"add <case>{data.file_ending} to the labels; unlabeled cases need none without upper_bound and --diagnose"
        )
        raise InputError(Problem("label missing", data.folder, ", ".join(bare), fix))
    return roles, missing


def described(
    data: FolderData, roles: Mapping[str, str], classes: Sequence[str] = (), channels: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of ``dataset.json``: the folder's own, or one made of names given and of the labels' values.

    Raises:
        InputError: the label values are not 0, 1, 2 and so on, or not as many as the names.
    """
    labeled = [case for case, role in roles.items() if role == "labeled"]
    counted = {"numTraining": len(labeled), "file_ending": data.file_ending}
    if data.description:
        return {**data.description, **counted}
    count = len(data.images[labeled[0]])
    named = channels or [f"channel {number}" for number in range(count)]
    if len(named) != count:
        detail = f"{len(named)} channels named, {count} per case"
        raise InputError(Problem("other number of channels", data.folder, detail, "change --channels"))
    known = [case for case, role in roles.items() if role not in ("unlabeled", "test")]
    highest = _highest_label(data, known)
    names = classes or [f"class {value}" for value in range(1, highest + 1)]
    if len(names) < highest:
        detail = f"{len(names)} classes named, labels up to {highest}"
        raise InputError(Problem("other number of classes", data.folder, detail, "change --classes"))
    labels = {"background": 0, **{name: value for value, name in enumerate(names, start=1)}}
    return {"channel_names": {str(number): name for number, name in enumerate(named)}, "labels": labels, **counted}


def _highest_label(data: FolderData, cases: Iterable[str]) -> int:
    files = [data.labels[case] for case in cases]
    reader = determine_reader_writer_from_file_ending(data.file_ending, str(files[0]), True, verbose=False)()
    values = sorted({float(value) for file in files for value in np.unique(reader.read_seg(str(file))[0])})
    if values != list(range(len(values))):
        detail = f"labels have the values {', '.join(f'{value:g}' for value in values)}"
        raise InputError(Problem("labels not 0, 1, 2, ...", data.folder, detail, "renumber them"))
    return len(values) - 1


def _files(data: FolderData, case: str, role: str) -> Iterator[tuple[str, Path]]:
    """Kind (``images`` or ``labels``) and file of all that a case brings along in its role."""
    yield from (("images", file) for file in data.images[case])
    if role != "unlabeled":
        yield "labels", data.labels[case]


def convert(
    data: FolderData, roles: Mapping[str, str], target: Path, record: dict[str, Any], **names: Sequence[str]
) -> None:
    """Write the raw data set ``target``, whole or not at all; a file beside an image or label (.json) comes along."""
    content = described(data, roles, **names)
    with atomic_folder(target) as folder:
        for case, role in roles.items():
            for kind, file in _files(data, case, role):
                place = folder / f"{kind}{FOLDER_ENDINGS[role]}"
                place.mkdir(exist_ok=True)
                for source in (file, file.with_name(f"{case}.json")):
                    if source.exists():
                        shutil.copyfile(source, place / source.name)
        write_json(folder / DESCRIPTION, content)
        facts = {case: {"patient": case, "role": role, "spacing_is_nominal": False} for case, role in roles.items()}
        write_json(folder / RECORD, {**record, "dataset": target.name, "cases": facts})


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-i", dest="folder", type=Path, required=True)
    add("-d", dest="dataset_id", type=int, required=True)
    add("--name", required=True, help="DatasetID_NAME is written")
    add("--splits", type=Path, required=True, help="labeled, unlabeled, val and test, as the protocol writes them")
    add("--classes", nargs="+", default=[], help="names of the labels 1, 2, ...")
    add("--channels", nargs="+", default=[], help="names of the channels")
    add("--allow-missing", action="store_true", help="go on without listed cases that the folder lacks")
    given = parser.parse_args()
    data = read_folder(given.folder)
    lists = read_json(given.splits, {role: [str] for role in ROLES}, FORM)
    roles, missing = roles_of(data, lists, given.allow_missing)
    target = raw_folder() / new_dataset_name(given.dataset_id, given.name)
    record = {"command": command_line("folder_data", *sys.argv[1:]), "missing": missing}
    convert(data, roles, target, record, classes=given.classes, channels=given.channels)
    counts = ", ".join(f"{list(roles.values()).count(role)} {role}" for role in ROLES)
    print(f"{target.name} written to {target}: {counts}")


if __name__ == "__main__":
    main()
