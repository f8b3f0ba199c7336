"""Cases from files to pictures: contour tiles and surfaces, as data URIs for a page that needs no other file.

Limit: the files were scored before, so that references and predictions are known to be whole and on one grid; images
are checked here.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from numpy.typing import NDArray

from nnunetv2_crossmatch.data.file_integrity import check_file_integrity, damaged_file_error
from nnunetv2_crossmatch.errors import Problem, raise_if_any
from nnunetv2_crossmatch.evaluation.segmentations import (
    LabelScheme,
    Segmentation,
    grid_problems,
    read_segmentation,
    reader_for,
)
from nnunetv2_crossmatch.report.contours import CasePicture, choose_slices, draw_slice, worst_slice
from nnunetv2_crossmatch.report.surfaces import draw_surfaces

TILE_INCHES, TILE_DPI, TILE_QUALITY = 2.2, 150, 70
CHART_DPI = 170
SURFACE_CLASSES = 6


@dataclass(frozen=True)
class Sources:
    """Where the files of all cases lie; ``predictions`` by the name that the reader of the page sees."""

    reference: Path
    predictions: Mapping[str, Path]
    images: Path | None
    scheme: LabelScheme
    spacing_mm: Sequence[float] | None = None

    def files(self, case: str) -> list[Path]:
        """Reference and predictions of a case."""
        return [folder / f"{case}{self.scheme.file_ending}" for folder in (self.reference, *self.predictions.values())]

    def image(self, case: str) -> Path | None:
        """The first channel of a case's image (formats that hold all channels in one file have only that)."""
        return self.images / f"{case}_0000{self.scheme.file_ending}" if self.images else None

    def missing_images(self, cases: Sequence[str]) -> list[Problem]:
        """One problem for each case without an image, or the one that there is no such folder."""
        if self.images is None:
            return []
        if not self.images.is_dir():
            return [Problem("folder missing", self.images, "no such folder", "check -i")]
        files = (self.images / f"{case}_0000{self.scheme.file_ending}" for case in cases)
        fix = "add the image, or leave -i out: contours are then drawn without images"
        return [Problem("image missing", file, "its case was scored", fix) for file in files if not file.is_file()]


@dataclass(frozen=True)
class Tile:
    """One slice with its contours: the picture as a data URI, and which prediction errs most on it."""

    uri: str
    caption: str
    worst_of: tuple[str, ...]


def read_case(case: str, sources: Sources, reader: BaseReaderWriter) -> CasePicture:
    """All arrays of a case (z, y, x); without images the background is black.

    Raises:
        InputError: the image is damaged, or on another grid than the reference.
    """
    reference, *predictions = (read_segmentation(file, reader) for file in sources.files(case))
    image = sources.image(case)
    background = np.zeros(reference.voxels.shape, np.float32) if image is None else read_image(image, reader, reference)
    ignored = reference.voxels == (-1 if sources.scheme.ignore is None else sources.scheme.ignore)
    labels = [np.where(ignored, 0, one.voxels).astype(np.int32) for one in (reference, *predictions)]
    spacing = reference.header["spacing"] if sources.spacing_mm is None else sources.spacing_mm
    z, y, x = (float(size) for size in spacing)
    named = dict(zip(sources.predictions, labels[1:], strict=True))
    return CasePicture(case, background, labels[0], named, (z, y, x))


def read_image(file: Path, reader: BaseReaderWriter, reference: Segmentation) -> NDArray[np.float32]:
    """First channel (z, y, x), or the colours (z, y, x, 3), of an image that must lie on the grid of ``reference``.

    Raises:
        InputError: the file is missing, damaged, or on another grid.
    """
    check_file_integrity(file)
    try:
        volume, header = reader.read_images((str(file),))
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise damaged_file_error(file, error) from error
    raise_if_any(list(grid_problems(Segmentation(file, volume[0], header), reference)))
    coloured = isinstance(reader, NaturalImage2DIO) and len(volume) >= 3
    return np.moveaxis(volume[:3], 0, -1) if coloured else volume[0]


def reader_of(sources: Sources, case: str) -> BaseReaderWriter:
    """The reader for the files of ``sources``."""
    return reader_for(sources.scheme, sources.files(case)[0])


def tiles(case: CasePicture) -> tuple[Tile, ...]:
    """Five slices and the worst one of each prediction."""
    worst = {name: worst_slice(case.reference, labels) for name, labels in case.predictions.items()}
    count = len(case.reference)

    def tile(index: int) -> Tile:
        worst_of = tuple(name for name, slice_index in worst.items() if slice_index == index)
        return Tile(draw_tile(case, index), f"slice {index + 1} of {count}", worst_of)

    return tuple(tile(index) for index in choose_slices(case.reference, list(case.predictions.values())))


def draw_tile(case: CasePicture, index: int) -> str:
    """One slice, edge to edge."""
    figure = Figure(figsize=(TILE_INCHES, TILE_INCHES * case.side_ratio), facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw_slice(axes, case, index)
    return figure_uri(figure, TILE_DPI, quality=TILE_QUALITY)


def surface_pictures(case: CasePicture, scheme: LabelScheme, unit: str) -> dict[str, str]:
    """Class to surfaces of the reference and the first prediction; nothing for a single slice or an empty class.

    Of many classes those with the most wrong voxels are drawn.
    """
    prediction = next(iter(case.predictions.values()))
    masks = {
        name: (np.isin(case.reference, values), np.isin(prediction, values)) for name, values in scheme.classes.items()
    }
    found = [name for name, (reference, predicted) in masks.items() if reference.any() or predicted.any()]
    if min(case.reference.shape) < 2:
        return {}
    wrong = {name: np.count_nonzero(masks[name][0] != masks[name][1]) for name in found}
    shown = sorted(found, key=lambda name: -wrong[name])[:SURFACE_CLASSES]

    def draw(name: str, file: Path) -> None:
        draw_surfaces({name: masks[name]}, case.spacing, file, unit)

    return {name: file_uri(partial(draw, name), "webp") for name in found if name in shown}


def figure_uri(figure: Figure, dpi: int, **webp: Any) -> str:
    """A figure as WebP in a data URI; ``webp``: options of Pillow's writer."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=dpi, pil_kwargs={"method": 4, **webp})
    return data_uri(buffer.getvalue(), "webp")


def chart_uri(figure: Figure) -> str:
    """A chart as WebP without loss: its lines and letters stay sharp."""
    return figure_uri(figure, CHART_DPI, lossless=True)


def file_uri(draw: Callable[[Path], None], ending: str) -> str:
    """What ``draw`` writes to the file that it is given, as a data URI."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"picture.{ending}"
        draw(file)
        return data_uri(file.read_bytes(), ending)


def data_uri(content: bytes, kind: str) -> str:
    """``content`` of an image file of this kind (``png``, ``webp``) as an address that needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def viewer_commands(case: str, sources: Sources) -> dict[str, str]:
    """Lines for a terminal that open a case with reference and predictions, program to line."""
    segmentations = [str(file.resolve()) for file in sources.files(case)]
    image = sources.image(case)
    main = str(image.resolve()) if image else segmentations[0]
    snap = shlex.join(["itksnap", "-g", main, "-s", *segmentations])
    loads = [("loadVolume", main), *(("loadSegmentation", file) for file in segmentations)]
    calls = [f"slicer.util.{load}({file!r})" for load, file in loads]
    return {"ITK-SNAP 4": snap, "3D Slicer": shlex.join(["Slicer", "--python-code", "; ".join(calls)])}
