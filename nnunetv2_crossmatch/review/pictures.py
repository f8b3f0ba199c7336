"""Three-plane pictures of a case: the image with contours of the prediction and of what is contested.

Limit: draws with ``report``; the planes are those of the array, seen along z, y and x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_crossmatch.data.reader_warnings import collected_warnings
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.metrics import BoolArray
from nnunetv2_crossmatch.evaluation.segmentations import read_segmentation
from nnunetv2_crossmatch.report.case_pictures import draw_slice_picture, read_image
from nnunetv2_crossmatch.report.contours import CaseVolumes
from nnunetv2_crossmatch.review.case_results import Measuring, read_contested

CONTESTED = "contested"
PLANES = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
FEWEST_SLICES = 4  # along an axis, for a plane that contains it


@dataclass(frozen=True)
class PlanePicture:
    """A data URI, and what plane and slice it shows."""

    uri: str
    caption: str


@dataclass(frozen=True)
class CasePictures:
    """Pictures of a case, or why there are none."""

    planes: tuple[PlanePicture, ...] = ()
    error: str = ""


def draw_case(measuring: Measuring, case: str, image: Path) -> CasePictures:
    """Pictures of a measured case; ``image`` is the file of its first channel."""
    try:
        with collected_warnings():
            volumes = read_volumes(measuring, case, image)
        return CasePictures(tuple(draw_planes(volumes)))
    except InputError as error:
        return CasePictures(error=error.problems[0].detail)
    except Exception as error:  # a fault in one picture must not cost the review of all cases
        return CasePictures(error=f"{type(error).__name__}: {error}")


def read_volumes(measuring: Measuring, case: str, image: Path) -> CaseVolumes:
    """Arrays (z, y, x) of a case: the prediction in the place of a reference, contested voxels in that of a prediction.

    Raises:
        InputError: a file is damaged, or the image is on another grid.
    """
    reader = measuring.model.reader
    labels = read_segmentation(measuring.prediction_file(case), reader)
    contested = {CONTESTED: read_contested(measuring.contested_file(case)).astype(np.int32)}
    z, y, x = map(float, labels.header["spacing"])
    background = read_image(image, reader, labels)
    return CaseVolumes(case, background, labels.voxels.astype(np.int32), contested, (z, y, x))


def draw_planes(case: CaseVolumes) -> Iterator[PlanePicture]:
    """Pictures along z, y and x of the slice with most contested voxels, as far as the image has such planes.

    That of an image of one slice has no caption.
    """
    contested = case.predictions[CONTESTED] > 0
    for axis, order in PLANES.items():
        if all(case.reference.shape[other] >= FEWEST_SLICES for other in order[1:]):
            turned = turned_volumes(case, order)
            index = busiest_slice(contested.transpose(order), turned.reference > 0)
            slices = len(turned.reference)
            caption = f"along {axis}, slice {index + 1} of {slices}" if slices > 1 else ""
            yield PlanePicture(draw_slice_picture(turned, index), caption)


def turned_volumes(case: CaseVolumes, order: tuple[int, int, int]) -> CaseVolumes:
    """``case`` with its axes in another order; where z is the rows, its end is at the top."""
    rows = slice(None, None, -1 if order[1] == 0 else 1)
    first, second, third = (case.spacing[axis] for axis in order)

    def turned(array: np.ndarray) -> np.ndarray:
        return array.transpose(*order, *range(3, array.ndim))[:, rows]

    contours = {name: turned(labels) for name, labels in case.predictions.items()}
    spacing = (first, second, third)
    return CaseVolumes(case.title, turned(case.image), turned(case.reference), contours, spacing)


def busiest_slice(contested: BoolArray, found: BoolArray) -> int:
    """Index along the first axis of the slice with most contested voxels; without any, with most found ones."""
    counts = (contested if contested.any() else found).sum(axis=(1, 2))
    return int(counts.argmax()) if counts.any() else len(counts) // 2
