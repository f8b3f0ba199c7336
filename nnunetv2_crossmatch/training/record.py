"""Record of a run: its inputs, beside its checkpoints as JSON, so that it is continued with the same or not at all.

Limit: compares nested plain values; the trainer collects them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.data.manifest import file_crc32
from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.folders import write_json
from nnunetv2_crossmatch.json_files import MissingFileError, read_json

FILE = "crossmatch_run.json"
INPUTS = "made_of"  # in the file
FORM = {
    "seed": int,
    "versions": {...: str},
    "processes?": (int, None),
    INPUTS: {"settings?": dict, "images?": dict},
}
PACKAGES = ("nnunetv2_crossmatch", "nnunetv2", "torch", "batchgeneratorsv2", "numpy")
SHOWN, SHORT = 8, 60


@dataclass(frozen=True)
class RunRecord:
    """The seed of all draws, installed versions by package, and nested plain values that must not change.

    ``processes`` is the number of those that share a batch; None in records of earlier versions.
    """

    seed: int
    versions: dict[str, str]
    inputs: dict[str, Any]
    processes: int | None = None


def new_record(seed: int, inputs: dict[str, Any]) -> RunRecord:
    """A record of this moment, with ``inputs`` as JSON gives them back."""
    return RunRecord(seed, {name: version(name) for name in PACKAGES}, json.loads(json.dumps(inputs)))


def write_record(folder: Path, record: RunRecord) -> None:
    """Write the record of the run in ``folder``, whole or not at all."""
    facts = {"seed": record.seed, "versions": record.versions, "processes": record.processes}
    write_json(folder / FILE, facts | {INPUTS: record.inputs})


def read_record(folder: Path) -> RunRecord | None:
    """The record of the run in ``folder``, or None if it has none.

    Raises:
        InputError: it is damaged, or could not be read.
    """
    try:
        remedy = "remove it; the run continues with newly drawn random numbers"
        content = read_json(folder / FILE, FORM, remedy, "record of the run damaged", nan=True)
    except MissingFileError:
        return None
    return RunRecord(content["seed"], content["versions"], content[INPUTS], content.get("processes"))


def check_same_inputs(folder: Path, before: RunRecord, now: RunRecord) -> None:
    """Compare the inputs of a run with those that it began with.

    Raises:
        InputError: they differ; the differences are listed.
    """
    found = list(differences(before.inputs, now.inputs))
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        remedy = "undo the change, or train anew without --c; removing the file accepts the change"
        raise InputError(Problem("run changed", folder / FILE, "; ".join([*found[:SHOWN], *more]), remedy))


def checksums(folder: Path, names: Iterable[str], ending: str) -> dict[str, int | None]:
    """CRC32 of the file of each name in ``folder``; None where there is none."""
    files = {name: folder / f"{name}{ending}" for name in sorted(names)}
    return {name: file_crc32(file) if file.is_file() else None for name, file in files.items()}


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two nested plain values differ: ``path: value before, value now``; lists are compared as a whole."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(before.get(key), now.get(key), f"{path}/{key}" if path else key)
    elif (old := json.dumps(before)) != (new := json.dumps(now)):
        yield f"{path}: {_short(old)} before, {_short(new)} now"


def _short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."
