"""Raw images of a data set grouped by case, and checks for misnamed files and for data leakage.

Limit: compares names, sizes and bytes. No image is decoded, so a copy that was saved again with other bytes is not
found.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.folders import check_names

LABELED_AND_TEST_FOLDERS = ("imagesTr", "imagesVal", "imagesTs")


@dataclass(frozen=True, slots=True)
class RawCase:
    """One case: its channel files in order, and its sidecar files (the spacing of a .tif, ...)."""

    identifier: str
    images: tuple[Path, ...]
    sidecars: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files of the case: it is preprocessed again if one of them changes."""
        return self.images + self.sidecars

    @property
    def no_files(self) -> list[Path]:
        """Those of its images that are a folder, or a link to nothing or to a folder."""
        return [file for file in self.images if not file.is_file()]


def group_by_case(folder: Path, file_ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Images ``<identifier>_<4 digits><file_ending>`` by identifier, sorted; and all other files that are not hidden.

    Linear in the number of files; nnU-Net's function compares every identifier with every file.

    Raises:
        InputError: a name is not UTF-8.
    """
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(file_ending))
    cases: dict[str, list[Path]] = {}
    other_files: list[Path] = []
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    check_names(folder / name for name in names)
    for name in names:
        match = pattern.fullmatch(name)
        (cases.setdefault(match.group(1), []) if match else other_files).append(folder / name)
    return cases, other_files


def find_unlabeled_cases(folder: Path, file_ending: str, allowed_counts: Collection[int]) -> dict[str, RawCase]:
    """All cases in ``folder`` by identifier.

    Args:
        folder: folder of raw images.
        file_ending: ending of the images.
        allowed_counts: allowed numbers of image files per case, which are numbered from 0000.

    Raises:
        InputError: the folder is missing or empty, or contains unusable files; all of them are named.
    """
    example = f"<case>_0000{file_ending}"
    if not folder.is_dir():
        raise InputError(Problem("folder missing", folder, "no unlabeled images", f"put images named {example} there"))
    images, other_files = group_by_case(folder, file_ending)
    case_of_stem = {stem: name for name, files in images.items() for stem in _sidecar_stems(name, files, file_ending)}
    sidecars: dict[str, list[Path]] = {}
    problems = [problem for name, files in images.items() for problem in _channel_problems(name, files, allowed_counts)]
    for file in other_files:
        case = None if file.name.endswith(file_ending) or file.is_dir() else _case_of_sidecar(file.name, case_of_stem)
        if case is None:
            problems.append(_unusable_file(file, file_ending))
        else:
            sidecars.setdefault(case, []).append(file)
    raise_if_any(problems)
    if not images:
        raise InputError(Problem("no images", folder, "the folder is empty", f"put images named {example} there"))
    return {name: RawCase(name, tuple(files), tuple(sidecars.get(name, ()))) for name, files in images.items()}


def _sidecar_stems(identifier: str, files: Iterable[Path], file_ending: str) -> Iterator[str]:
    yield identifier
    yield from (file.name.removesuffix(file_ending) for file in files)


def _case_of_sidecar(name: str, case_of_stem: Mapping[str, str]) -> str | None:
    """Case of the sidecar file ``name``: a prefix of it, up to a dot, is the name of the case or of its image."""
    prefixes = (name[: dot.start()] for dot in re.finditer(r"\.", name))
    return next((case_of_stem[prefix] for prefix in prefixes if prefix in case_of_stem), None)


def _channel_problems(identifier: str, files: list[Path], allowed_counts: Collection[int]) -> Iterator[Problem]:
    found = [file.name[len(identifier) + 1 :][:4] for file in files]
    expected = [[f"{channel:04d}" for channel in range(count)] for count in sorted(allowed_counts)]
    if found not in expected:
        detail = f"channels {', '.join(found)} found, {' or '.join(map(', '.join, expected))} expected"
        yield Problem("wrong number of channels", files[0].with_name(identifier), detail, "add or remove channel files")


def _unusable_file(file: Path, file_ending: str) -> Problem:
    if file.is_dir():
        return Problem("not an image", file, "it is a folder", "move the images up and remove the folder")
    if not file.name.endswith(file_ending):
        return Problem("wrong file ending", file, f"{file_ending} expected", "convert or remove it")
    name = file.name.removesuffix(file_ending) + "_0000" + file_ending
    return Problem("no channel number", file, f"<case>_0000{file_ending} expected", f"rename it to {name}")


def equal_but_for_case(names: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names, one of ``names`` and one of ``others``, that are equal in lower case; sorted."""
    by_lower: dict[str, set[str]] = {}
    for other in others:
        by_lower.setdefault(other.casefold(), set()).add(other)
    pairs = ((name, other) for name in names for other in by_lower.get(name.casefold(), ()))
    return sorted(pair for pair in pairs if pair[0] != pair[1])


def images_by_case(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """Images in ``folder`` by identifier; empty if the folder does not exist."""
    return group_by_case(folder, file_ending)[0] if folder.is_dir() else {}


def labeled_and_test_images(dataset_folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """Images in ``imagesTr``, ``imagesVal`` and ``imagesTs`` by identifier."""
    reserved: dict[str, list[Path]] = {}
    for folder in (dataset_folder / name for name in LABELED_AND_TEST_FOLDERS):
        for identifier, files in images_by_case(folder, file_ending).items():
            reserved.setdefault(identifier, []).extend(files)
    return reserved


def leak_problems(
    cases: Iterable[RawCase],
    reserved: Mapping[str, list[Path]],
    crc_unlabeled: Callable[[Path], int],
    crc_reserved: Callable[[Path], int],
) -> list[Problem]:
    """Data leakage: unlabeled cases with the name or the bytes of a labeled, validation or test image.

    Sizes are compared first, then checksums of files of equal size, then bytes of files with equal checksums. Of what
    is no file, as a link to nothing, only the name is compared.

    Args:
        cases: the unlabeled cases.
        reserved: labeled, validation and test images by identifier.
        crc_unlabeled: CRC32 of an unlabeled file.
        crc_reserved: CRC32 of a file in ``reserved``; called once per file.
    """
    by_size: dict[int, list[Path]] = {}
    for file in (file for files in reserved.values() for file in files if file.is_file()):
        by_size.setdefault(file.stat().st_size, []).append(file)
    by_crc: dict[int, dict[int, list[Path]]] = {}
    problems = []
    for case in cases:
        if case.identifier in reserved:
            problems.append(_leak_problem(case.images[0], reserved[case.identifier][0], "has the name of"))
            continue
        for file in (file for file in case.images if file.is_file()):
            size = file.stat().st_size
            if size in by_size and size not in by_crc:
                by_crc[size] = _group_by_crc(by_size[size], crc_reserved)
            candidates = by_crc[size].get(crc_unlabeled(file), []) if size in by_size else []
            same = (candidate for candidate in candidates if filecmp.cmp(file, candidate, shallow=False))
            problems += [_leak_problem(file, candidate, "holds the same bytes as") for candidate in same]
    return problems


def _group_by_crc(files: list[Path], crc: Callable[[Path], int]) -> dict[int, list[Path]]:
    groups: dict[int, list[Path]] = {}
    for file in files:
        groups.setdefault(crc(file), []).append(file)
    return groups


def _leak_problem(unlabeled: Path, reserved: Path, relation: str) -> Problem:
    detail = f"it {relation} {reserved.parent.name}/{reserved.name}"
    return Problem("labeled or held-out image among the unlabeled", unlabeled, detail, "remove one of the two")
