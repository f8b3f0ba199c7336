"""Pictures of cases: slices with contours and surfaces, as data URIs for a self-contained HTML page.

Limit: references and predictions must have been scored, which checks that they are intact and on one grid; images are
checked here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from numpy.typing import NDArray

from nnunetv2_crossmatch.data.file_integrity import check_file_integrity, reader_errors_told
from nnunetv2_crossmatch.data.reader_warnings import collected_warnings
from nnunetv2_crossmatch.errors import Problem, command_line, raise_if_any
from nnunetv2_crossmatch.evaluation.evaluate import EvaluationOptions, pair_files
from nnunetv2_crossmatch.evaluation.label_schemes import read_label_schemes
from nnunetv2_crossmatch.evaluation.segmentations import (
    LabelScheme,
    PredictionLabels,
    Segmentation,
    find_reader,
    grid_problems,
    read_segmentation,
)
from nnunetv2_crossmatch.report.contours import CaseVolumes, choose_slices, draw_slice, worst_slice
from nnunetv2_crossmatch.report.surfaces import draw_surfaces

SLICE_INCHES, SLICE_DPI, SLICE_QUALITY = 2.2, 150, 70
CHART_DPI = 170
MAX_SURFACE_CLASSES = 6


@dataclass(frozen=True)
class CaseFiles:
    """Files of all cases; ``predictions`` maps the name shown in the report to a folder.

    ``pairs`` maps this name and a case to prediction and reference; ``labels`` maps it to the labels of the folder.
    ``warned`` collects what the reader warned of in images, each with the file.
    """

    reference: Path
    predictions: Mapping[str, Path]
    images: Path | None
    pairs: Mapping[str, Mapping[str, tuple[Path, Path]]]
    labels: Mapping[str, PredictionLabels]
    spacing_mm: Sequence[float] | None = None
    warned: list[tuple[str, Sequence[Path]]] = field(default_factory=list)

    @property
    def scheme(self) -> LabelScheme:
        """Classes and label numbers of the reference."""
        return next(iter(self.labels.values())).scheme

    def reference_file(self, case: str) -> Path:
        """File of the reference of a case."""
        return next(pairs[case][1] for pairs in self.pairs.values() if case in pairs)

    def prediction_files(self, case: str) -> dict[str, Path]:
        """Name of the predictions to file of a case, for all predictions that contain the case."""
        return {name: pairs[case][0] for name, pairs in self.pairs.items() if case in pairs}

    def image(self, case: str) -> Path | None:
        """File of the first image channel of a case; formats with all channels in one file have only this file."""
        return self.images / f"{case}_0000{self.scheme.file_ending}" if self.images else None

    def missing_image_problems(self, cases: Sequence[str]) -> list[Problem]:
        """A problem for each case without an image, or a single one if the folder is missing."""
        if self.images is None:
            return []
        if not self.images.is_dir():
            return [Problem("folder missing", self.images, "no such folder", "check -i")]
        files = (self.images / f"{case}_0000{self.scheme.file_ending}" for case in cases)
        fix = "add the image, or leave -i out: contours are then drawn without images"
        return [Problem("image missing", file, "its case was scored", fix) for file in files if not file.is_file()]


def find_case_files(
    reference: Path,
    predictions: Mapping[str, Path],
    images: Path | None,
    dataset_json: Path | None = None,
    options: EvaluationOptions | None = None,
) -> CaseFiles:
    """Files and labels of all cases, as :func:`evaluate.evaluate_folders` reads them."""
    options = options or EvaluationOptions()
    schemes = read_label_schemes(reference, list(predictions.values()), dataset_json)
    labels = dict(zip(predictions, schemes, strict=True))
    pairs = {
        name: pair_files(reference, folder, labels[name].scheme.file_ending, options.suffixes).pairs
        for name, folder in predictions.items()
    }
    return CaseFiles(reference, predictions, images, pairs, labels, options.spacing_mm)


@dataclass(frozen=True)
class SlicePicture:
    """A slice with contours as a data URI, and the names of the predictions with the most errors on this slice."""

    uri: str
    caption: str
    most_errors_of: tuple[str, ...]


def read_case(case: str, case_files: CaseFiles, reader: BaseReaderWriter) -> CaseVolumes:
    """Read the arrays (z, y, x) of a case; without images the background is black.

    Raises:
        InputError: the image is damaged, or on another grid than the reference.
    """
    files = case_files.prediction_files(case)
    with collected_warnings():  # the evaluation has told them
        reference = read_segmentation(case_files.reference_file(case), reader)
        predictions = {name: read_segmentation(file, reader).voxels.astype(np.int32) for name, file in files.items()}
    background = np.zeros(reference.voxels.shape, np.float32)
    if (image := case_files.image(case)) is not None:
        with collected_warnings() as found:
            background = read_image(image, reader, reference)
        case_files.warned.extend((text, [image]) for text in found)
    ignored = reference.voxels == (-1 if case_files.scheme.ignore is None else case_files.scheme.ignore)
    labels = {name: case_files.labels[name].apply(voxels) for name, voxels in predictions.items()}
    labels_by_name = {name: np.where(ignored, 0, voxels) for name, voxels in labels.items()}
    spacing = reference.header["spacing"] if case_files.spacing_mm is None else case_files.spacing_mm
    z, y, x = (float(size) for size in spacing)
    return CaseVolumes(
        case, background, np.where(ignored, 0, reference.voxels).astype(np.int32), labels_by_name, (z, y, x)
    )


def read_image(file: Path, reader: BaseReaderWriter, reference: Segmentation) -> NDArray[np.float32]:
    """First channel (z, y, x), or RGB (z, y, x, 3), of an image on the grid of ``reference``.

    Raises:
        InputError: the file is missing, damaged, or on another grid.
    """
    check_file_integrity(file)
    with reader_errors_told(file):
        volume, header = reader.read_images((str(file),))
    raise_if_any(list(grid_problems(Segmentation(file, volume[0], header), reference)))
    coloured = isinstance(reader, NaturalImage2DIO) and len(volume) >= 3
    return np.moveaxis(volume[:3], 0, -1) if coloured else volume[0]


def case_reader(case_files: CaseFiles) -> BaseReaderWriter:
    """nnU-Net's reader for the files of ``case_files``."""
    pairs = next(iter(case_files.pairs.values()))
    return find_reader(case_files.scheme, next(iter(pairs.values()))[1])


def draw_slices(case: CaseVolumes) -> tuple[SlicePicture, ...]:
    """Pictures of five slices and of the worst slice of each prediction."""
    worst = {name: worst_slice(case.reference, labels) for name, labels in case.predictions.items()}
    count = len(case.reference)

    def draw(index: int) -> SlicePicture:
        most_errors_of = tuple(name for name, slice_index in worst.items() if slice_index == index)
        return SlicePicture(draw_slice_picture(case, index), f"slice {index + 1} of {count}", most_errors_of)

    return tuple(draw(index) for index in choose_slices(case.reference, list(case.predictions.values())))


def draw_slice_picture(case: CaseVolumes, index: int) -> str:
    """Draw one slice without a frame; returns a data URI."""
    figure = Figure(figsize=(SLICE_INCHES, SLICE_INCHES * case.aspect_ratio), facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw_slice(axes, case, index)
    return figure_uri(figure, SLICE_DPI, quality=SLICE_QUALITY)


def draw_case_surfaces(case: CaseVolumes, scheme: LabelScheme, unit: str) -> dict[str, str]:
    """Map class to a picture of the surfaces of reference and first prediction; skips single slices and empty classes.

    At most ``MAX_SURFACE_CLASSES`` classes are drawn, those with the most wrong voxels.
    """
    prediction = next(iter(case.predictions.values()))
    masks = {
        name: (np.isin(case.reference, values), np.isin(prediction, values)) for name, values in scheme.classes.items()
    }
    found = [name for name, (reference, predicted) in masks.items() if reference.any() or predicted.any()]
    if min(case.reference.shape) < 2:
        return {}
    wrong = {name: np.count_nonzero(masks[name][0] != masks[name][1]) for name in found}
    shown = sorted(found, key=lambda name: -wrong[name])[:MAX_SURFACE_CLASSES]

    def draw(name: str, file: Path) -> None:
        draw_surfaces({name: masks[name]}, case.spacing, file, unit)

    return {name: drawn_file_uri(partial(draw, name), "webp") for name in found if name in shown}


def figure_uri(figure: Figure, dpi: int, **webp: Any) -> str:
    """Figure as WebP data URI; ``webp`` are options of Pillow's writer."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=dpi, pil_kwargs={"method": 4, **webp})
    return data_uri(buffer.getvalue(), "webp")


def chart_uri(figure: Figure) -> str:
    """Chart as lossless WebP data URI, which keeps lines and text sharp."""
    return figure_uri(figure, CHART_DPI, lossless=True)


def drawn_file_uri(draw: Callable[[Path], None], ending: str) -> str:
    """Data URI of the file that ``draw`` writes to the path it receives."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"picture.{ending}"
        draw(file)
        return data_uri(file.read_bytes(), ending)


def data_uri(content: bytes, kind: str) -> str:
    """Data URI of an image file's ``content``; ``kind`` is ``png`` or ``webp``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def viewer_commands(case: str, case_files: CaseFiles) -> dict[str, str]:
    """Map viewer program to the shell command that opens a case with its reference and predictions."""
    files = [case_files.reference_file(case), *case_files.prediction_files(case).values()]
    segmentations = [str(file.resolve()) for file in files]
    image = case_files.image(case)
    main = str(image.resolve()) if image else segmentations[0]
    snap = command_line("itksnap", "-g", main, "-s", *segmentations)
    loads = [("loadVolume", main), *(("loadSegmentation", file) for file in segmentations)]
    calls = [f"slicer.util.{load}({file!r})" for load, file in loads]
    return {"ITK-SNAP 4": snap, "3D Slicer": command_line("Slicer", "--python-code", "; ".join(calls))}
