"""Raw images of a data set, case by case: finds them, names the misnamed, and finds unlabeled images that leak.

Limit: names, sizes and bytes only. No image is decoded here, so a copy that was re-saved with other bytes is not found.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any

HELD_FOLDERS = ("imagesTr", "imagesVal", "imagesTs")


@dataclass(frozen=True, slots=True)
class RawCase:
    """One case: its channels in order, and files that belong to it without being an image (spacing of a .tif, ...)."""

    identifier: str
    images: tuple[Path, ...]
    sidecars: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every file whose change makes the case a different one."""
        return self.images + self.sidecars


def group_by_case(folder: Path, file_ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Images ``<identifier>_<4 digits><file_ending>`` by identifier, sorted, and everything else that is not hidden.

    One pass over the folder; the host's helper compares every identifier with every file.
    """
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(file_ending))
    cases: dict[str, list[Path]] = {}
    rest: list[Path] = []
    for name in sorted(name for name in os.listdir(folder) if not name.startswith(".")):
        match = pattern.fullmatch(name)
        (cases.setdefault(match.group(1), []) if match else rest).append(folder / name)
    return cases, rest


def unlabeled_cases(folder: Path, file_ending: str, counts: Collection[int]) -> dict[str, RawCase]:
    """All cases in ``folder`` by identifier, each with one of ``counts`` images, numbered from 0000 on.

    Raises:
        InputError: the folder is missing or empty, or holds files that cannot be used; all of them are named.
    """
    example = f"<case>_0000{file_ending}"
    if not folder.is_dir():
        raise InputError(Problem("folder missing", folder, "no unlabeled images", f"put images named {example} there"))
    images, rest = group_by_case(folder, file_ending)
    owners = {stem: name for name, files in images.items() for stem in _stems(name, files, file_ending)}
    sidecars: dict[str, list[Path]] = {}
    problems = [problem for name, files in images.items() for problem in _channel_problems(name, files, counts)]
    for file in rest:
        owner = None if file.name.endswith(file_ending) or file.is_dir() else _owner(file.name, owners)
        if owner is None:
            problems.append(_stranger(file, file_ending))
        else:
            sidecars.setdefault(owner, []).append(file)
    raise_if_any(problems)
    if not images:
        raise InputError(Problem("no images", folder, "the folder is empty", f"put images named {example} there"))
    return {name: RawCase(name, tuple(files), tuple(sidecars.get(name, ()))) for name, files in images.items()}


def _stems(identifier: str, files: Iterable[Path], file_ending: str) -> Iterator[str]:
    yield identifier
    yield from (file.name.removesuffix(file_ending) for file in files)


def _owner(name: str, owners: Mapping[str, str]) -> str | None:
    """Case that ``name`` accompanies: one of its beginnings, cut at a dot, is the name of a case or an image."""
    beginnings = (name[: dot.start()] for dot in re.finditer(r"\.", name))
    return next((owners[beginning] for beginning in beginnings if beginning in owners), None)


def _channel_problems(identifier: str, files: list[Path], counts: Collection[int]) -> Iterator[Problem]:
    found = [file.name[len(identifier) + 1 :][:4] for file in files]
    expected = [[f"{channel:04d}" for channel in range(count)] for count in sorted(counts)]
    if found not in expected:
        detail = f"channels {', '.join(found)} found, {' or '.join(map(', '.join, expected))} expected"
        yield Problem("wrong number of channels", files[0].with_name(identifier), detail, "add or remove channel files")


def _stranger(file: Path, file_ending: str) -> Problem:
    if file.is_dir():
        return Problem("not an image", file, "it is a folder", "move the images up and remove the folder")
    if not file.name.endswith(file_ending):
        return Problem("wrong file ending", file, f"{file_ending} expected", "convert or remove it")
    name = file.name.removesuffix(file_ending) + "_0000" + file_ending
    return Problem("no channel number", file, f"<case>_0000{file_ending} expected", f"rename it to {name}")


def images_in(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """Images by identifier; none where the folder is missing."""
    return group_by_case(folder, file_ending)[0] if folder.is_dir() else {}


def held_images(dataset_folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """Images of ``imagesTr``, ``imagesVal`` and ``imagesTs`` by identifier: none of them may be unlabeled."""
    held: dict[str, list[Path]] = {}
    for folder in (dataset_folder / name for name in HELD_FOLDERS):
        for identifier, files in images_in(folder, file_ending).items():
            held.setdefault(identifier, []).extend(files)
    return held


def find_leaks(
    cases: Iterable[RawCase],
    held: Mapping[str, list[Path]],
    crc_unlabeled: Callable[[Path], int],
    crc_held: Callable[[Path], int],
) -> list[Problem]:
    """Unlabeled cases that are named like a held one, or hold the same bytes under another name.

    Sizes are compared first, checksums where sizes are equal, bytes where checksums are.

    Args:
        cases: the unlabeled cases.
        held: labeled, validation and test images by identifier.
        crc_unlabeled, crc_held: CRC32 of a file of either kind; ``crc_held`` is asked once per file.
    """
    by_size: dict[int, list[Path]] = {}
    for file in (file for files in held.values() for file in files):
        by_size.setdefault(file.stat().st_size, []).append(file)
    by_crc: dict[int, dict[int, list[Path]]] = {}
    problems = []
    for case in cases:
        if case.identifier in held:
            problems.append(_leak(case.images[0], held[case.identifier][0], "has the name of"))
            continue
        for file in case.images:
            size = file.stat().st_size
            if size in by_size and size not in by_crc:
                by_crc[size] = _grouped(by_size[size], crc_held)
            twins = by_crc[size].get(crc_unlabeled(file), []) if size in by_size else []
            same = (twin for twin in twins if filecmp.cmp(file, twin, shallow=False))
            problems += [_leak(file, twin, "holds the same bytes as") for twin in same]
    return problems


def _grouped(files: list[Path], crc: Callable[[Path], int]) -> dict[int, list[Path]]:
    groups: dict[int, list[Path]] = {}
    for file in files:
        groups.setdefault(crc(file), []).append(file)
    return groups


def _leak(unlabeled: Path, held: Path, relation: str) -> Problem:
    detail = f"it {relation} {held.parent.name}/{held.name}"
    return Problem("labeled or held-out image among the unlabeled", unlabeled, detail, "remove one of the two")
