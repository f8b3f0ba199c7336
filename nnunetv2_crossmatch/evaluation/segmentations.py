"""Segmentations from files: a prediction and its reference as label arrays, refused where they do not fit together.

Limit: reads through the host's readers and judges files; scores nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from numpy.typing import NDArray

from nnunetv2_crossmatch.data.file_integrity import check_file_integrity, damaged_file_error
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.evaluation.metrics import bounding_box

LabelArray = NDArray[np.int32]

# Headers hold float32, so equal grids differ in the last digits: a thousandth of a unit, a hundredth of a voxel.
SPACING_TOLERANCE = 1e-3
DIRECTION_TOLERANCE = 1e-3
ORIGIN_TOLERANCE_VOXELS = 1e-2
GRID_FIX = "predict from images on the grid of the reference, or resample the prediction onto it"


@dataclass(frozen=True)
class LabelScheme:
    """What a ``dataset.json`` says about segmentations.

    Attributes:
        classes: name to label values; several values are a region. Without background and without the ignore label.
        ignore: label of reference voxels that nothing is known about, or None.
        content: the whole file, for the host's functions.
    """

    file_ending: str
    classes: dict[str, tuple[int, ...]]
    ignore: int | None
    content: dict[str, Any]

    def values(self, with_ignore: bool) -> list[int]:
        """Every label that a file may hold, background included; the ignore label belongs to references only."""
        known = {0, *(value for values in self.classes.values() for value in values)}
        return sorted(known | ({self.ignore} if with_ignore and self.ignore is not None else set()))


@dataclass(frozen=True)
class Segmentation:
    """One file as its reader gives it: voxels (z, y, x) of the reader's type, and the reader's header record."""

    file: Path
    voxels: NDArray[Any]
    header: dict[str, Any]


@dataclass(frozen=True)
class SegmentationPair:
    """Labels of prediction and reference, cropped to what either holds; ignored voxels are background in both.

    ``spacing`` is the reader's, one number per axis of the arrays; ``spacing_in_header`` is False for formats such as
    PNG that carry none. An image of a single slice has two axes; ``axes`` says which of (z, y, x) they are.
    """

    prediction: LabelArray
    reference: LabelArray
    spacing: tuple[float, ...]
    spacing_in_header: bool
    axes: tuple[int, ...]


def read_label_scheme(dataset_json: Path) -> LabelScheme:
    """Label scheme of a ``dataset.json`` in the host's format.

    Raises:
        InputError: the file is missing, not JSON, or lacks ``labels`` or ``file_ending``.
    """
    try:
        content = json.loads(dataset_json.read_text(encoding="utf-8"))
        labels = {name: tuple(np.atleast_1d(value).astype(int).tolist()) for name, value in content["labels"].items()}
        ignore = labels.pop("ignore", (None,))[0]
        classes = {name: values for name, values in labels.items() if set(values) != {0}}
        scheme = LabelScheme(str(content["file_ending"]), classes, ignore, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"{type(error).__name__}: {error}"
        fix = "give a dataset.json of nnU-Net v2 with labels and file_ending (-djfile)"
        raise InputError(Problem("no usable label scheme", dataset_json, detail, fix)) from error
    if not classes:
        raise InputError(Problem("no class to score", dataset_json, "labels names background only", "add the classes"))
    return scheme


def reader_for(scheme: LabelScheme, example: Path) -> BaseReaderWriter:
    """The host's reader for these files: the one named in ``dataset.json``, or the first that can read ``example``."""
    choices: tuple[str | None, ...] = (str(example), None)
    for choice in choices:
        # The host prints a traceback for every reader that it tries in vain.
        with contextlib.suppress(RuntimeError), contextlib.redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(scheme.content, choice, verbose=False)()
    problem = Problem("unknown file ending", example, scheme.file_ending, "use an ending that nnU-Net reads")
    raise InputError(problem)


def read_pair(prediction: Path, reference: Path, reader: BaseReaderWriter, scheme: LabelScheme) -> SegmentationPair:
    """Read and check one case.

    Raises:
        InputError: a file is damaged, no segmentation, or has labels beyond the scheme; or the grids differ. Everything
            that is wrong with the case is named.
    """
    first, second = read_both(prediction, reference, reader)
    raise_if_any(list(grid_problems(first, second)))
    box = bounding_box((first.voxels != 0) | (second.voxels != 0))
    problems: list[Problem] = []
    predicted = labels(first.voxels[box], prediction, scheme.values(with_ignore=False), problems)
    expected = labels(second.voxels[box], reference, scheme.values(with_ignore=True), problems)
    raise_if_any(problems)
    if scheme.ignore is not None:
        known = expected != scheme.ignore
        predicted, expected = predicted * known, expected * known
    axes = measurable_axes(second.voxels.shape)
    spacing = tuple(float(second.header["spacing"][axis]) for axis in axes)
    in_header = grid(second.header) is not None
    return SegmentationPair(reduced(predicted, axes), reduced(expected, axes), spacing, in_header, tuple(axes))


def read_both(prediction: Path, reference: Path, reader: BaseReaderWriter) -> tuple[Segmentation, Segmentation]:
    """Both files of a case; raises with what is wrong with either."""
    found: list[Segmentation] = []
    problems: list[Problem] = []
    for file in (prediction, reference):
        try:
            found.append(read_segmentation(file, reader))
        except InputError as error:
            problems += error.problems
    raise_if_any(problems)
    return found[0], found[1]


def measurable_axes(shape: tuple[int, ...]) -> list[int]:
    """Axes along which an image has several voxels: across a single slice all of a mask would count as its border."""
    return [axis for axis, length in enumerate(shape) if length > 1] or list(range(len(shape)))


def reduced(array: LabelArray, axes: list[int]) -> LabelArray:
    """``array`` without the axes that are not in ``axes``, which have length 1, or 0 if nothing was cropped."""
    return array.reshape([array.shape[axis] for axis in axes])


def read_segmentation(file: Path, reader: BaseReaderWriter) -> Segmentation:
    """Read one file whole.

    Raises:
        InputError: the file is damaged, cannot be read, or has several channels.
    """
    check_file_integrity(file)
    try:
        volume, header = reader.read_seg(str(file))
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise damaged_file_error(file, error) from error
    if len(volume) != 1:
        detail = f"{len(volume)} channels"
        raise InputError(Problem("not a segmentation", file, detail, "store one label per voxel"))
    return Segmentation(file, volume[0], header)


def grid(header: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Origin (x, y, z) and direction matrix of a reader's header record; None for formats that have no geometry."""
    if "sitk_stuff" in header:
        origin = np.asarray(header["sitk_stuff"]["origin"], dtype=np.float64)
        return origin, np.reshape(header["sitk_stuff"]["direction"], (len(origin), len(origin)))
    if "nibabel_stuff" in header:
        affine = np.asarray(header["nibabel_stuff"]["original_affine"], dtype=np.float64)
        return affine[:3, 3], affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return None


def grid_problems(prediction: Segmentation, reference: Segmentation) -> Iterator[Problem]:
    """How the grid of ``prediction`` differs from that of ``reference``: shape, spacing, origin, direction."""

    def problem(what: str, here: Any, there: Any) -> Problem:
        detail = f"{shown(here)}, but {shown(there)} in {reference.file}"
        return Problem(f"{what} differs from the reference", prediction.file, detail, GRID_FIX)

    if prediction.voxels.shape != reference.voxels.shape:
        yield problem("shape (z, y, x)", prediction.voxels.shape, reference.voxels.shape)
    here, there = prediction.header["spacing"], reference.header["spacing"]
    if not np.allclose(here, there, rtol=SPACING_TOLERANCE, atol=0):
        yield problem("spacing (z, y, x)", here, there)
    here_grid, there_grid = grid(prediction.header), grid(reference.header)
    if here_grid is None or there_grid is None or here_grid[0].shape != there_grid[0].shape:
        return
    if np.abs(here_grid[0] - there_grid[0]).max() > ORIGIN_TOLERANCE_VOXELS * min(there):
        yield problem("origin (x, y, z)", here_grid[0], there_grid[0])
    if not np.allclose(here_grid[1], there_grid[1], rtol=0, atol=DIRECTION_TOLERANCE):
        yield problem("direction", here_grid[1].ravel(), there_grid[1].ravel())


def shown(numbers: Any) -> str:
    """Numbers in brackets, six digits each."""
    return f"({', '.join(f'{float(number):.6g}' for number in numbers)})"


def labels(volume: NDArray[Any], file: Path, allowed: list[int], problems: list[Problem]) -> LabelArray:
    """``volume`` as integers; values beyond ``allowed`` are added to ``problems``."""
    with np.errstate(invalid="ignore"):  # NaN becomes some integer, which then differs from the voxel
        integers = volume.astype(np.int32)
    known = np.isin(integers, allowed) & (integers == volume)
    if not known.all():
        values, counts = np.unique(volume[~known], return_counts=True)
        listed = [f"{value:g} ({count} voxels)" for value, count in zip(values[:5], counts[:5], strict=True)]
        detail = f"{', '.join(listed)}{' and more' if len(values) > 5 else ''}; known: {', '.join(map(str, allowed))}"
        fix = "mend the file, or add the label to dataset.json"
        problems.append(Problem("label not in dataset.json", file, detail, fix))
    return integers
