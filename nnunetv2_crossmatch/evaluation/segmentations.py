"""Reading of a prediction and its reference as label arrays, with checks that both files are intact and on one grid.

Limit: reads with nnU-Net's readers and checks; computes no scores.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from numpy.typing import NDArray

from nnunetv2_crossmatch.data.file_formats import nifti_header
from nnunetv2_crossmatch.data.file_integrity import check_file_integrity, reader_errors_told
from nnunetv2_crossmatch.data.plans_check import check_reader_name
from nnunetv2_crossmatch.data.voxel_size import check_voxel_size
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.evaluation.metrics import bounding_box
from nnunetv2_crossmatch.folders import NOMINAL_SPACING_MARK, is_file_name
from nnunetv2_crossmatch.json_files import read_json

LabelArray = NDArray[np.int32]
NO_SCHEME = "no usable label scheme"
SCHEME_FORM = {"labels": {...: (int, str, [int])}, "file_ending": str, "overwrite_image_reader_writer?": (str, None)}

# Headers store float32, so equal grids differ in the last digits. Tolerances: 0.1 % of a spacing, 0.01 voxel.
SPACING_TOLERANCE = 1e-3
DIRECTION_TOLERANCE = 1e-3
ORIGIN_TOLERANCE_VOXELS = 1e-2
GRID_FIX = "predict from images on the grid of the reference, or resample the prediction onto it"


@dataclass(frozen=True)
class LabelScheme:
    """Label definitions of a ``dataset.json``.

    Attributes:
        classes: name to label values (several values for a region), without background and ignore label.
        ignore: label of reference voxels that are excluded from scoring, or None.
        content: content of the whole file, which nnU-Net's functions need.
    """

    file_ending: str
    classes: dict[str, tuple[int, ...]]
    ignore: int | None
    content: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of all classes."""
        return list(self.classes)

    def values(self, with_ignore: bool) -> list[int]:
        """Labels that a file may contain, including background; the ignore label is allowed in references only."""
        known = {0, *(value for values in self.classes.values() for value in values)}
        return sorted(known | ({self.ignore} if with_ignore and self.ignore is not None else set()))


@dataclass(frozen=True)
class PredictionLabels:
    """How the labels of a folder of predictions are read.

    Attributes:
        scheme: classes and label numbers of the reference; file ending and reader of the predictions.
        mapping: label number in the predictions to the one in ``scheme``; empty if the numbers are equal.
        notes: remarks that must be printed with the scores.
    """

    scheme: LabelScheme
    mapping: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def allowed(self) -> list[int]:
        """Labels that a prediction may contain, including background."""
        return sorted({0, *self.mapping}) if self.mapping else self.scheme.values(with_ignore=False)

    def apply(self, predicted: LabelArray) -> LabelArray:
        """``predicted`` with the label numbers of the reference."""
        mapped = predicted.copy() if self.mapping else predicted
        for old, new in self.mapping.items():
            mapped[predicted == old] = new
        return mapped


@dataclass(frozen=True)
class Segmentation:
    """One file as returned by nnU-Net's reader: voxels (z, y, x) with the reader's dtype, and its header dictionary."""

    file: Path
    voxels: NDArray[Any]
    header: dict[str, Any]


@dataclass(frozen=True)
class SegmentationPair:
    """Labels of prediction and reference, cropped to the labels of both; ignored voxels are background in both.

    ``spacing`` is the reader's, one number per axis of the arrays; ``spacing_in_header`` is False for formats without
    spacing, such as PNG. An image of a single slice has two axes; ``axes`` are their indices in (z, y, x).
    ``spacing_is_nominal`` is True if the reference's header marks its spacing as not measured.
    """

    prediction: LabelArray
    reference: LabelArray
    spacing: tuple[float, ...]
    spacing_in_header: bool
    axes: tuple[int, ...]
    spacing_is_nominal: bool = False


def read_label_scheme(dataset_json: Path) -> LabelScheme:
    """Label scheme of a ``dataset.json`` in nnU-Net's format.

    Raises:
        InputError: the file is missing, not JSON, or lacks ``labels`` or ``file_ending``.
    """
    fix = "give a dataset.json of nnU-Net v2 with labels and file_ending (-djfile)"
    content = read_json(dataset_json, SCHEME_FORM, fix, NO_SCHEME, nan=True)
    check_reader_name(content, dataset_json)
    try:
        labels = {name: tuple(np.atleast_1d(value).astype(int).tolist()) for name, value in content["labels"].items()}
        ignore = labels.pop("ignore", (None,))[0]
        classes = {name: values for name, values in labels.items() if set(values) != {0}}
        if not is_file_name(content["file_ending"]):
            raise ValueError(f"file_ending is {content['file_ending']!r}")
        scheme = LabelScheme(content["file_ending"], classes, ignore, content)
    except ValueError as error:
        raise InputError(Problem(NO_SCHEME, dataset_json, str(error), fix)) from error
    if not classes:
        raise InputError(Problem("no class to score", dataset_json, "labels names background only", "add the classes"))
    return scheme


def find_reader(scheme: LabelScheme, example: Path) -> BaseReaderWriter:
    """nnU-Net's reader for these files: the one named in ``dataset.json``, or the first that can read ``example``."""
    choices: tuple[str | None, ...] = (str(example), None)
    for choice in choices:
        # nnU-Net prints a traceback for every reader that fails.
        with contextlib.suppress(RuntimeError), contextlib.redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(scheme.content, choice, verbose=False)()
    problem = Problem("unknown file ending", example, scheme.file_ending, "use an ending that nnU-Net reads")
    raise InputError(problem)


def read_pair(
    prediction: Path, reference: Path, reader: BaseReaderWriter, labels: PredictionLabels
) -> SegmentationPair:
    """Read and check one case.

    Raises:
        InputError: a file is damaged, is no segmentation, or has unknown labels; or the grids differ. Lists all
            problems of the case.
    """
    scheme = labels.scheme
    first, second = read_prediction_and_reference(prediction, reference, reader)
    raise_if_any(list(grid_problems(first, second)))
    box = bounding_box((first.voxels != 0) | (second.voxels != 0))
    problems: list[Problem] = []
    predicted = labels.apply(checked_labels(first.voxels[box], prediction, labels.allowed(), problems))
    expected = checked_labels(second.voxels[box], reference, scheme.values(with_ignore=True), problems)
    raise_if_any(problems)
    if scheme.ignore is not None:
        known = expected != scheme.ignore
        predicted, expected = predicted * known, expected * known
    axes = multi_voxel_axes(second.voxels.shape)
    spacing = tuple(float(second.header["spacing"][axis]) for axis in axes)
    in_header = header_geometry(second.header) is not None
    nominal = is_nominal_in_header(reference)
    return SegmentationPair(
        select_axes(predicted, axes), select_axes(expected, axes), spacing, in_header, tuple(axes), nominal
    )


def read_prediction_and_reference(
    prediction: Path, reference: Path, reader: BaseReaderWriter
) -> tuple[Segmentation, Segmentation]:
    """Read both files of a case; the raised ``InputError`` lists the problems of both."""
    found: list[Segmentation] = []
    problems: list[Problem] = []
    for file in (prediction, reference):
        try:
            found.append(read_segmentation(file, reader))
        except InputError as error:
            problems += error.problems
    raise_if_any(problems)
    return found[0], found[1]


def multi_voxel_axes(shape: tuple[int, ...]) -> list[int]:
    """Axes with more than one voxel. Along an axis of length 1 every voxel of a mask would be a border voxel."""
    return [axis for axis, length in enumerate(shape) if length > 1] or list(range(len(shape)))


def select_axes(array: LabelArray, axes: list[int]) -> LabelArray:
    """``array`` with the given ``axes`` only; the other axes have length 1, or 0 after cropping to an empty box."""
    return array.reshape([array.shape[axis] for axis in axes])


def is_nominal_in_header(file: Path) -> bool:
    """Whether a converter of this package has marked the spacing in the header of a NIfTI file as nominal."""
    header = nifti_header(file)
    return header is not None and header["descrip"].item() == NOMINAL_SPACING_MARK.encode()


def read_segmentation(file: Path, reader: BaseReaderWriter) -> Segmentation:
    """Read one file.

    Raises:
        InputError: the file is damaged, cannot be read now, has an impossible voxel size, or several channels.
    """
    check_file_integrity(file)
    with reader_errors_told(file):
        volume, header = reader.read_seg(str(file))
    check_voxel_size(file, header["spacing"])
    if len(volume) != 1:
        detail = f"{len(volume)} channels"
        raise InputError(Problem("not a segmentation", file, detail, "store one label per voxel"))
    return Segmentation(file, volume[0], header)


def header_geometry(header: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Origin (x, y, z) and direction matrix of a reader's header dictionary; None for formats without geometry."""
    if "sitk_stuff" in header:
        origin = np.asarray(header["sitk_stuff"]["origin"], dtype=np.float64)
        return origin, np.reshape(header["sitk_stuff"]["direction"], (len(origin), len(origin)))
    if "nibabel_stuff" in header:
        affine = np.asarray(header["nibabel_stuff"]["original_affine"], dtype=np.float64)
        return affine[:3, 3], affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return None


def grid_problems(prediction: Segmentation, reference: Segmentation) -> Iterator[Problem]:
    """Differences between the grids of ``prediction`` and ``reference``: shape, spacing, origin, direction."""

    def problem(what: str, predicted: Any, expected: Any) -> Problem:
        detail = f"{format_numbers(predicted)}, but {format_numbers(expected)} in {reference.file}"
        return Problem(f"{what} differs from the reference", prediction.file, detail, GRID_FIX)

    if prediction.voxels.shape != reference.voxels.shape:
        yield problem("shape (z, y, x)", prediction.voxels.shape, reference.voxels.shape)
    spacings = prediction.header["spacing"], reference.header["spacing"]
    if not np.allclose(*spacings, rtol=SPACING_TOLERANCE, atol=0):
        yield problem("spacing (z, y, x)", *spacings)
    predicted, expected = header_geometry(prediction.header), header_geometry(reference.header)
    if predicted is None or expected is None or predicted[0].shape != expected[0].shape:
        return
    if np.abs(predicted[0] - expected[0]).max() > ORIGIN_TOLERANCE_VOXELS * min(spacings[1]):
        yield problem("origin (x, y, z)", predicted[0], expected[0])
    if not np.allclose(predicted[1], expected[1], rtol=0, atol=DIRECTION_TOLERANCE):
        yield problem("direction", predicted[1].ravel(), expected[1].ravel())


def format_numbers(numbers: Any) -> str:
    """Format numbers in parentheses with six digits each."""
    return f"({', '.join(f'{float(number):.6g}' for number in numbers)})"


def checked_labels(volume: NDArray[Any], file: Path, allowed: list[int], problems: list[Problem]) -> LabelArray:
    """``volume`` as integers; a problem that lists the values not in ``allowed`` is appended to ``problems``."""
    with np.errstate(invalid="ignore"):  # a NaN is cast to an arbitrary integer, which differs from the voxel
        integers = volume.astype(np.int32)
    known = np.isin(integers, allowed) & (integers == volume)
    if not known.all():
        values, counts = np.unique(volume[~known], return_counts=True)
        listed = [f"{value:g} ({count} voxels)" for value, count in zip(values[:5], counts[:5], strict=True)]
        detail = f"{', '.join(listed)}{' and more' if len(values) > 5 else ''}; known: {', '.join(map(str, allowed))}"
        fix = "mend the file, or add the label to dataset.json"
        problems.append(Problem("label not in dataset.json", file, detail, fix))
    return integers
