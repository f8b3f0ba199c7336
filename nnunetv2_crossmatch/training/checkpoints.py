"""Checkpoints: atomic writes, no weights that are not finite, safe loading, and a search for the newest readable one.

Limit: files of ``torch.save`` (zip archives) with the entries of nnU-Net's trainer.
"""

from __future__ import annotations

import itertools
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from nnunetv2_crossmatch.errors import FULL_DISK, InputError, NotReadError, Problem, file_not_read, unread_reason
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.json_files import check_form

LATEST = "checkpoint_latest.pth"
CANDIDATES = ("checkpoint_final.pth", LATEST, "checkpoint_best.pth")
"""What a training can go on from; of two with the same epoch the first one is taken."""

METHOD_STATE = "method_state"
"""Where a checkpoint holds the modules and optimizers of the method, if it has any."""

WEIGHTS = {"network": "", "teacher": "average.", "peer": "peer."}
"""Whole networks in a checkpoint, and how the names of their weights begin among the modules of a method."""

FORM = {"network_weights": dict, "current_epoch": int, "trainer_name": str, "init_args": dict, "logging?": dict}
UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
    AssertionError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What the readers of zip archives and pickles raise where bytes were altered."""


def nonfinite(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors in ``weights`` that hold NaN or infinity; waits once for the device, not per tensor."""
    floating = {name: value for name, value in weights.items() if value.is_floating_point()}
    if not floating:
        return []
    finite = torch.stack([value.isfinite().all() for value in floating.values()]).tolist()
    return [name for name, good in zip(floating, finite, strict=True) if not good]


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors inside nested dicts, lists and tuples, each with its keys joined by dots."""
    if isinstance(value, torch.Tensor):
        yield name, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from named_tensors(part, f"{name}.{key}" if name else str(key))


def tensor_bytes(value: Any) -> int:
    """Bytes that the tensors inside ``value`` take: nearly the size of their checkpoint."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(value))


@contextmanager
def atomic_checkpoint(file: Path, needed_bytes: int) -> Iterator[Path]:
    """Yield a temporary path for code that saves by itself (nnU-Net's ``save_checkpoint``).

    It becomes ``file`` when the block succeeds; otherwise it is removed, and an earlier ``file`` is as it was.

    Raises:
        InputError: the disk is full; ``needed_bytes`` and the free bytes are told.
    """
    with disk_full_reported(file, needed_bytes), atomic_write(file) as temporary:
        yield temporary


@contextmanager
def entries_added(entries: Mapping[str, Any]) -> Iterator[None]:
    """Add ``entries`` to the checkpoint that nnU-Net saves; it collects and writes one in a single method."""
    save = torch.save

    def save_with_entries(checkpoint: dict[str, Any], *arguments: Any) -> None:
        save({**checkpoint, **entries}, *arguments)

    with patch.object(torch, "save", save_with_entries):
        yield


@contextmanager
def disk_full_reported(file: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn the error of a full disk while ``file`` is written into one line.

    Raises:
        InputError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(file.parent).free
        if not _caused_by_full_disk(error) and free >= needed_bytes:
            raise
        needed = f", {needed_bytes} are needed" if needed_bytes else ""
        detail = f"{free} bytes are free{needed}; the checkpoint from before is intact"
        raise InputError(Problem("disk full", file, detail, "make room, then continue with --c")) from error


def _caused_by_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk caused ``error``; torch.save raises errors of its own from it."""
    return error is not None and (getattr(error, "errno", None) in FULL_DISK or _caused_by_full_disk(error.__context__))


def write_checkpoint(checkpoint: dict[str, Any], file: Path) -> None:
    """Write ``checkpoint`` to ``file``: flushed to disk under a temporary name, then renamed.

    Raises:
        InputError: its network weights are not finite, or the disk is full; an earlier ``file`` is as it was.
    """
    check_finite(checkpoint["network_weights"], file)
    with atomic_checkpoint(file, tensor_bytes(checkpoint)) as temporary, temporary.open("wb") as stream:
        torch.save(checkpoint, stream)  # by name it would not tell why it failed


def check_finite(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Raise :class:`InputError` if ``weights``, meant for ``file``, are not finite."""
    if broken := nonfinite(weights):
        detail = f"{len(broken)} tensors hold NaN or infinity, the first is {broken[0]}; nothing was written"
        raise InputError(Problem("weights not finite", file, detail, "continue from the last checkpoint with --c"))


class DamagedCheckpointError(InputError):
    """The file is truncated, altered, or not a checkpoint."""


def load_checkpoint(file: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Load the checkpoint in ``file`` after verifying its checksums, without running code that it may contain.

    Raises:
        DamagedCheckpointError: it is cut off, altered, or lacks what a training checkpoint has.
        InputError: it holds objects other than tensors, numbers, text and arrays; or it could not be read.
    """
    _verify_archive(file)
    return _load(file, map_location)


@contextmanager
def _faults_told_apart(file: Path) -> Iterator[None]:
    """Turn errors of the readers of ``file`` into those of a damaged file, or of one that could not be read."""
    try:
        yield
    except UNREADABLE as error:
        if reason := unread_reason(error, file):
            raise NotReadError(file_not_read(file, reason)) from error
        raise _damaged(file, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _verify_archive(file: Path) -> None:
    """Compare the checksums; ``torch.load`` does not, and reads altered weights."""
    with _faults_told_apart(file), zipfile.ZipFile(file) as archive:
        bad = archive.testzip()
    if bad:
        raise _damaged(file, f"checksum of {bad} differs")


def _load(file: Path, map_location: str | torch.device = "cpu", mmap: bool = False) -> dict[str, Any]:
    with _faults_told_apart(file):
        with file.open("rb") as stream:  # is_zipfile by name would take a file that cannot be opened for another format
            if not zipfile.is_zipfile(stream):
                raise ValueError("cut off, or not written by torch.save")
        try:
            with torch.serialization.safe_globals(_allowed()):
                checkpoint = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            detail = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
            fix = "load it only with stock tools and only if you trust its author"
            raise InputError(Problem("checkpoint holds foreign code", file, detail.strip(), fix)) from error
    try:
        check_form(checkpoint, FORM)
    except ValueError as error:
        raise _damaged(file, f"no training checkpoint: {error}") from error
    return checkpoint


def trained_with(file: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """``plans``, ``configuration`` and ``dataset_json`` of the training that wrote ``checkpoint`` to ``file``.

    Raises:
        DamagedCheckpointError: it does not tell them.
    """
    arguments: dict[str, Any] = checkpoint["init_args"]
    try:
        check_form(arguments, {"plans": {"configurations": {...: dict}}, "configuration": str, "dataset_json?": dict})
    except ValueError as error:
        raise _damaged(file, f"no training checkpoint: {error}") from error
    return arguments


def other_networks(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of the networks beside the trained one: its moving average (``teacher``), a second one (``peer``)."""
    modules = checkpoint.get(METHOD_STATE, {}).get("modules", {})
    found = {
        name: {key.removeprefix(start): value for key, value in modules.items() if key.startswith(start)}
        for name, start in WEIGHTS.items()
        if start
    }
    return {name: weights for name, weights in found.items() if weights.keys() == checkpoint["network_weights"].keys()}


def _damaged(file: Path, detail: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(Problem("checkpoint damaged", file, detail, "use another checkpoint"))


def _allowed() -> list[Any]:
    """Objects beside tensors in nnU-Net's checkpoints: numpy numbers and arrays, under old and new module names."""
    functions: list[Any] = [np.array(0.0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    homes = ("numpy.core.multiarray", "numpy._core.multiarray")
    names = [(function, f"{home}.{function.__name__}") for function in functions for home in homes]
    return [*names, np.ndarray, np.dtype, *(type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd")]


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to resume from, and the next epoch."""

    file: Path
    next_epoch: int


def newest_checkpoint(folder: Path, log: Callable[[str], None] = print) -> ResumePoint | None:
    """The readable checkpoint in ``folder`` with the most epochs, or None if there is none.

    Unreadable ones with more epochs are renamed to ``*.corrupt`` and logged.

    Args:
        folder: a fold folder of the host.
        log: takes one line at a time.

    Raises:
        InputError: a checkpoint holds foreign code, or could not be read for a reason other than its bytes; it is left
            as it is.
    """
    epochs = {}
    for file in (folder / name for name in CANDIDATES):
        try:
            if _exists(file):
                epochs[file] = int(_load(file, mmap=True)["current_epoch"])
        except DamagedCheckpointError as error:
            _rename_corrupt(file, error, log)
    for file in sorted(epochs, key=lambda file: -epochs[file]):
        try:
            _verify_archive(file)
        except DamagedCheckpointError as error:
            _rename_corrupt(file, error, log)
            continue
        return ResumePoint(file, epochs[file])
    return None


def keep_previous_checkpoints(folder: Path, log: Callable[[str], None] = print) -> None:
    """Rename checkpoints of an earlier run in ``folder`` to ``*.previous``, so that ``--c`` does not resume them.

    Those of a run that went further are never overwritten: the names then end in ``.previous2``, ``.previous3``, ...
    """
    present = [file for file in (folder / name for name in CANDIDATES) if file.exists()]
    suffix = _free_suffix(folder, max(map(_epoch_of, present), default=0))
    for file in present:
        file.replace(file.with_name(file.name + suffix))
        log(f"{file.name} is of an earlier run; kept as {file.name}{suffix}")


def _free_suffix(folder: Path, epoch: int) -> str:
    """The first suffix under which no checkpoint is kept that has more epochs than ``epoch``, or cannot be read."""
    for number in itertools.count(1):
        suffix = ".previous" + (str(number) if number > 1 else "")
        kept = [file for file in (folder / (name + suffix) for name in CANDIDATES) if file.exists()]
        if all(0 <= _epoch_of(file) <= epoch for file in kept):
            return suffix
    raise AssertionError("counting has no end")


def _epoch_of(file: Path) -> int:
    """Epochs that the checkpoint ``file`` has behind it; -1 if it cannot be read."""
    try:
        return int(_load(file, mmap=True)["current_epoch"])
    except InputError:
        return -1


def check_not_all_corrupt(folder: Path) -> None:
    """Raise :class:`InputError` if ``folder`` holds ``*.corrupt`` files, for a run that found nothing to continue."""
    if corrupt := sorted(file.name for file in folder.glob("*.corrupt")):
        detail = f"only {', '.join(corrupt)}, which an earlier --c could not use"
        raise InputError(Problem("no checkpoint", folder, detail, "train anew without --c, or restore a checkpoint"))


def _exists(file: Path) -> bool:
    with _faults_told_apart(file):
        return file.exists()


def _rename_corrupt(file: Path, error: InputError, log: Callable[[str], None]) -> None:
    corrupt = file.with_name(f"{file.name}.corrupt")
    file.replace(corrupt)
    log(f"{file.name} cannot be used ({error.problems[0].detail}); kept as {corrupt.name}")
