"""Manifest of a folder of preprocessed unlabeled cases: what is in it, made from what, and whether it is still whole.

Limit: a CRC32 finds damage and accidents, not a forger. The manifest is JSON and is never unpickled.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.folders import written_whole

FORMAT = 1
READ_BYTES = 1 << 20
ENDINGS = (".pkl", "_seg.b2nd", ".b2nd")
"""What a case consists of, in the order in which it is put in place: the host lists a case by its last one."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file looked like: bytes, CRC32 of its content, and, of a source file, when it was last written (ns)."""

    size: int
    crc32: int
    modified_ns: int = 0


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """A finished case: its files by ending (:data:`ENDINGS`), and the raw files by name that it was made from."""

    files: dict[str, Stamp]
    sources: dict[str, Stamp]


@dataclass
class Manifest:
    """Finished cases by identifier, and the hash of the preprocessing that made them."""

    plans_hash: str
    package_version: str
    cases: dict[str, CaseRecord] = field(default_factory=dict)


def file_crc32(file: Path) -> int:
    """CRC32 of the content of ``file``, read in pieces; other threads run meanwhile."""
    crc = 0
    with file.open("rb", buffering=0) as stream:
        while piece := stream.read(READ_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def stamp(file: Path) -> Stamp:
    """Stamp of ``file`` as it is now."""
    status = file.stat()
    return Stamp(status.st_size, file_crc32(file), status.st_mtime_ns)


def fresh_stamp(file: Path, known: Stamp | None) -> Stamp:
    """Stamp of ``file``; the ``known`` one where size and time say that it still holds, so that nothing is read."""
    status = file.stat()
    same = known is not None and (known.size, known.modified_ns) == (status.st_size, status.st_mtime_ns)
    return known if known is not None and same else stamp(file)


def sources_changed(record: CaseRecord, sources: Iterable[Path]) -> bool:
    """Whether ``sources`` are other files, or other bytes, than those that ``record`` was made from."""
    files = {file.name: file for file in sources}
    if files.keys() != record.sources.keys():
        return True
    pairs = [(file, record.sources[name]) for name, file in files.items()]
    if any(file.stat().st_size != known.size for file, known in pairs):
        return True
    return any(fresh_stamp(file, known).crc32 != known.crc32 for file, known in pairs)


def damage(folder: Path, identifier: str, record: CaseRecord) -> list[tuple[Path, str]]:
    """Files of a case that are missing or differ from its record, each with what is wrong."""
    return [
        (folder / (identifier + ending), fault)
        for ending, known in record.files.items()
        if (fault := _fault(folder / (identifier + ending), known))
    ]


def _fault(file: Path, known: Stamp) -> str:
    try:
        size = file.stat().st_size
        if size != known.size:
            return f"{size} bytes instead of {known.size}"
        return "" if file_crc32(file) == known.crc32 else "content changed since it was written (CRC32 differs)"
    except OSError as error:
        return "file missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def damaged_cases(folder: Path, manifest: Manifest) -> dict[str, list[tuple[Path, str]]]:
    """Every case of ``manifest`` that is not whole in ``folder``; a progress bar appears after two seconds."""

    def check(item: tuple[str, CaseRecord]) -> tuple[str, list[tuple[Path, str]]]:
        return item[0], damage(folder, *item)

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        checked = pool.imap(check, manifest.cases.items(), chunksize=32)
        bar = tqdm(checked, "Verifying unlabeled cases", total=len(manifest.cases), delay=2, unit="case")
        return {identifier: faults for identifier, faults in bar if faults}


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Write ``manifest`` as JSON; what was at ``file`` is replaced at once or not at all."""
    content = {
        "format": FORMAT,
        "package_version": manifest.package_version,
        "plans_hash": manifest.plans_hash,
        "cases": {identifier: _case_to_json(record) for identifier, record in sorted(manifest.cases.items())},
    }
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _case_to_json(record: CaseRecord) -> dict[str, dict[str, list[int]]]:
    files = {ending: [known.size, known.crc32] for ending, known in record.files.items()}
    sources = {name: [known.size, known.crc32, known.modified_ns] for name, known in record.sources.items()}
    return {"files": files, "sources": sources}


def read_manifest(file: Path, remedy: str) -> Manifest:
    """Manifest in ``file``.

    Raises:
        InputError: it is missing, is no JSON, or is no manifest of this format; ``remedy`` is the command to run.
    """
    try:
        content = json.loads(file.read_bytes())
        return _manifest_from_json(content)
    except FileNotFoundError:
        raise InputError(Problem("unlabeled data not preprocessed", file, "the manifest is missing", remedy)) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(Problem("manifest unreadable", file, f"{type(error).__name__}: {error}", remedy)) from error


def _manifest_from_json(content: dict) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
    cases = {identifier: _case_from_json(identifier, case) for identifier, case in content["cases"].items()}
    return Manifest(_text(content["plans_hash"]), _text(content["package_version"]), cases)


def _case_from_json(identifier: str, case: dict) -> CaseRecord:
    if set(case["files"]) != set(ENDINGS) or Path(identifier).name != identifier:
        raise ValueError(f"case {identifier!r} is not described by {', '.join(ENDINGS)}")
    return CaseRecord(*({name: _stamp(values) for name, values in case[part].items()} for part in ("files", "sources")))


def _stamp(values: list) -> Stamp:
    if not (isinstance(values, list) and all(type(value) is int for value in values)):
        raise ValueError(f"whole numbers expected, got {values!r}")
    return Stamp(*values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"text expected, got {value!r}")
    return value


class ManifestKeeper:
    """Adds finished cases to a manifest file while work goes on, so that a killed run loses seconds of it at most.

    Writing everything for each case would take quadratic time: it is done when at most 5 % of the time goes into it.
    """

    def __init__(self, file: Path, manifest: Manifest) -> None:
        self.file = file
        self.manifest = manifest
        self.pause_until = 0.0

    def add(self, identifier: str, record: CaseRecord) -> None:
        """Record a finished case, and write the file if the last time is long enough ago."""
        self.manifest.cases[identifier] = record
        if time.monotonic() >= self.pause_until:
            self.write()

    def write(self) -> None:
        """Write the file now."""
        start = time.monotonic()
        write_manifest(self.file, self.manifest)
        end = time.monotonic()
        self.pause_until = end + max(1.0, 20 * (end - start))
