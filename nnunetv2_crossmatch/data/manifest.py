"""Manifest of a folder of preprocessed unlabeled cases: its files and their source files, with sizes and checksums.

Limit: CRC32 detects accidental changes, no deliberate ones. The manifest is JSON; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem, file_not_read, system_reason
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.json_files import MissingFileError, read_json

FORMAT = 1
PREPROCESSING = 1
"""To be raised by each change of this package after which the voxels of preprocessed cases differ."""
MANIFEST_FORM = {
    "format": int,
    "plans_hash": str,
    "package_version": str,
    "cases": {...: {"files": {...: [int]}, "sources": {...: [int]}}},
    "asked_for?": [str],
    "ended?": bool,
    "made_with?": str,
}
CHUNK_BYTES = 1 << 20
ENDINGS = (".pkl", "_seg.b2nd", ".b2nd")
"""Endings of the files of a case, in the order in which they are written: nnU-Net lists cases by the last one."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Size in bytes, CRC32 of the content, and, for a source file, what tells whether it is still the same file.

    The modification time (ns) alone does not: copies and archives set it. The time of the last change of the inode (ns)
    and its number cannot be set. 0: not recorded, as by earlier versions.
    """

    size: int
    crc32: int
    modified_ns: int = 0
    changed_ns: int = 0
    inode: int = 0


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """Files of a preprocessed case by ending (:data:`ENDINGS`), and its raw files by name."""

    files: dict[str, FileInfo]
    sources: dict[str, FileInfo]


@dataclass
class Manifest:
    """Preprocessed cases by identifier, and the hash of the plans that they were preprocessed with.

    Attributes:
        asked_for: identifiers of the cases that the last run was to preprocess or to keep; empty if not recorded.
        ended: whether that run came to its end, whatever it found in the images.
        made_with: what :func:`preprocessing_version` was; empty if not recorded.
    """

    plans_hash: str
    package_version: str
    cases: dict[str, CaseRecord] = field(default_factory=dict)
    asked_for: tuple[str, ...] = ()
    ended: bool = True
    made_with: str = ""

    def missing(self) -> list[str]:
        """Cases that the last run was asked for and did not preprocess, sorted."""
        return sorted(set(self.asked_for) - self.cases.keys())


def preprocessing_version() -> str:
    """The versions on which preprocessed voxels depend: nnU-Net's minor version, and our own preprocessing."""
    return f"nnU-Net {'.'.join(version('nnunetv2').split('.')[:2])}, preprocessing {PREPROCESSING}"


def file_crc32(file: Path) -> int:
    """CRC32 of the content of ``file``, read in chunks; releases the GIL."""
    crc = 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def file_info(file: Path) -> FileInfo:
    """Present size, CRC32, times and inode of ``file``."""
    status = file.stat()
    return FileInfo(status.st_size, file_crc32(file), status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def updated_file_info(file: Path, known: FileInfo | None) -> FileInfo:
    """As :func:`file_info`, but ``known`` without reading the file if size, times and inode are equal.

    Also if there is no file: a link to a disk that this machine does not have cannot be compared.
    """
    if known is not None and not file.is_file():
        return known
    status = file.stat()
    now = FileInfo(status.st_size, known.crc32 if known else 0, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return known if known == now else file_info(file)


def sources_changed(record: CaseRecord, sources: Iterable[Path]) -> bool:
    """Whether names or contents of ``sources`` differ from the raw files in ``record``."""
    files = {file.name: file for file in sources}
    if files.keys() != record.sources.keys():
        return True
    pairs = [(file, record.sources[name]) for name, file in files.items()]
    if any(file.is_file() and file.stat().st_size != known.size for file, known in pairs):
        return True
    return any(updated_file_info(file, known).crc32 != known.crc32 for file, known in pairs)


def case_damage(folder: Path, identifier: str, record: CaseRecord) -> list[tuple[Path, str]]:
    """Files of a case that are missing or differ from its record, each with the reason.

    Raises:
        NotReadError: a file could not be read.
    """
    return [
        (folder / (identifier + ending), problem)
        for ending, known in record.files.items()
        if (problem := _file_damage(folder / (identifier + ending), known))
    ]


def _file_damage(file: Path, known: FileInfo) -> str:
    try:
        size = file.stat().st_size
        if size != known.size:
            return f"{size} bytes instead of {known.size}"
        return "" if file_crc32(file) == known.crc32 else "content changed since it was written (CRC32 differs)"
    except FileNotFoundError:
        return "file missing"
    except OSError as error:
        raise NotReadError(file_not_read(file, system_reason(error))) from error


def find_damaged_cases(folder: Path, manifest: Manifest) -> dict[str, list[tuple[Path, str]]]:
    """Cases of ``manifest`` with missing or changed files in ``folder``; a progress bar appears after two seconds."""

    def check(item: tuple[str, CaseRecord]) -> tuple[str, list[tuple[Path, str]]]:
        return item[0], case_damage(folder, *item)

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        checked = pool.imap(check, manifest.cases.items(), chunksize=32)
        bar = tqdm(checked, "Verifying unlabeled cases", total=len(manifest.cases), delay=2, unit="case")
        return {identifier: problems for identifier, problems in bar if problems}


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Write ``manifest`` as JSON, atomically."""
    content = {
        "format": FORMAT,
        "package_version": manifest.package_version,
        "plans_hash": manifest.plans_hash,
        "made_with": manifest.made_with,
        "ended": manifest.ended,
        "asked_for": sorted(manifest.asked_for),
        "cases": {identifier: _case_to_json(record) for identifier, record in sorted(manifest.cases.items())},
    }
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _case_to_json(record: CaseRecord) -> dict[str, dict[str, list[int]]]:
    files = {ending: [known.size, known.crc32] for ending, known in record.files.items()}
    sources = {name: list(astuple(known)) for name, known in record.sources.items()}
    return {"files": files, "sources": sources}


def read_manifest(file: Path, remedy: str) -> Manifest:
    """Read a manifest.

    Raises:
        InputError: ``file`` is missing, is no JSON, or has another format; ``remedy`` is the command to run.
        NotReadError: it could not be read.
    """
    try:
        return _manifest_from_json(read_json(file, MANIFEST_FORM, remedy, "manifest unreadable"))
    except MissingFileError:
        raise InputError(Problem("unlabeled data not preprocessed", file, "the manifest is missing", remedy)) from None
    except (ValueError, TypeError) as error:
        raise InputError(Problem("manifest unreadable", file, str(error), remedy)) from error


def _manifest_from_json(content: dict) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
    cases = {identifier: _case_from_json(identifier, case) for identifier, case in content["cases"].items()}
    asked_for, ended = content.get("asked_for") or [], content.get("ended", True)  # earlier versions had neither
    made_with = content.get("made_with") or ""
    return Manifest(content["plans_hash"], content["package_version"], cases, tuple(asked_for), ended, made_with)


def _case_from_json(identifier: str, case: dict) -> CaseRecord:
    if set(case["files"]) != set(ENDINGS) or Path(identifier).name != identifier:
        raise ValueError(f"case {identifier!r} is not described by {', '.join(ENDINGS)}")
    return CaseRecord(
        *({name: FileInfo(*numbers) for name, numbers in case[part].items()} for part in ("files", "sources"))
    )


class ManifestWriter:
    """Adds preprocessed cases to a manifest file during a run, so that a killed run loses seconds of work at most.

    Writing the whole file for each case would take quadratic time; writing takes 5 % of the run time at most.
    """

    def __init__(self, file: Path, manifest: Manifest) -> None:
        self.file = file
        self.manifest = manifest
        self.next_write = 0.0

    def add(self, identifier: str, record: CaseRecord) -> None:
        """Record a preprocessed case; write the file if the last write is long enough ago."""
        self.manifest.cases[identifier] = record
        if time.monotonic() >= self.next_write:
            self.write()

    def write(self) -> None:
        """Write the file now."""
        start = time.monotonic()
        write_manifest(self.file, self.manifest)
        end = time.monotonic()
        self.next_write = end + max(1.0, 20 * (end - start))
