"""Prediction and measuring of cases one after the other, each kept in files, so that a stopped run goes on.

In a folder: ``predictions/<case>`` with the data set's ending, ``measures/<case>.json``, which is written last, and
``contested/<case>.npz``: where the decodings differ or, without any, where the labels are unsure. Limit: one process.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from numpy.typing import NDArray
from skimage.transform import resize

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.data.manifest import file_info
from nnunetv2_crossmatch.data.reader_warnings import collected_warnings
from nnunetv2_crossmatch.errors import FULL_DISK, InputError, Problem
from nnunetv2_crossmatch.evaluation.segmentations import (
    LabelScheme,
    PredictionLabels,
    header_geometry,
    is_nominal_in_header,
    read_pair,
)
from nnunetv2_crossmatch.json_files import MissingFileError, read_json
from nnunetv2_crossmatch.prediction.predictor import CasePredictor, Prediction
from nnunetv2_crossmatch.review.measures import (
    NAN,
    UNSURE_BELOW,
    ClassMeasures,
    dice,
    mean_of_defined,
    measure_classes,
    surface_uncertainty,
)
from nnunetv2_crossmatch.review.streams import Disagreement, Streams

NUMBER = (float, None)
FORM = {
    "sources": {...: [int]},
    "voxel_ml": NUMBER,
    "foreground": int,
    "classes": {...: {"voxels": int, "components": int, "largest": NUMBER, "borders": str}},
    "entropy": NUMBER,
    "unsure": NUMBER,
    "disagreement": {...: [float]},
    "features": [float],
    "dice": NUMBER,
}
CONTESTED_SHARE = 0.5


@dataclass(frozen=True)
class CaseResult:
    """What is known of a case.

    Attributes:
        sources: size and CRC32 of each image file by name.
        voxel_ml: volume of a voxel in ml; NaN if the file tells no measured voxel size.
        foreground: voxels of all classes together.
        classes: measures by class.
        entropy, unsure: of the voxels around the surfaces, 0 to 1; NaN if there is no surface.
        disagreement: 1 - Dice of each draw or network, by kind.
        features: pooled ones of the encoder.
        dice: mean over the classes against the reference, for a held-out case; else NaN.
    """

    case: str
    sources: dict[str, list[int]]
    voxel_ml: float
    foreground: int
    classes: dict[str, ClassMeasures]
    entropy: float
    unsure: float
    disagreement: dict[str, list[float]]
    features: list[float] = field(repr=False)
    dice: float = NAN

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was found."""
        return self.foreground == 0

    def mean_disagreement(self, kinds: Collection[str] | None = None) -> float:
        """Mean over the kinds (None: all) of the mean over their draws; NaN without any."""
        chosen = (values for kind, values in self.disagreement.items() if kinds is None or kind in kinds)
        return mean_of_defined(sum(values) / len(values) for values in chosen)

    def uncertainty(self, kinds: Collection[str] | None = None) -> float:
        """:meth:`mean_disagreement` or, without any, the share of unsure voxels; 1 without a surface."""
        if self.is_empty or math.isnan(self.unsure):
            return 1.0
        disagreement = self.mean_disagreement(kinds)
        return self.unsure if math.isnan(disagreement) else disagreement


class StoppedError(InputError):
    """Raised for a fault that every case would meet, as a full disk: the run ends, and goes on when it is mended."""


@dataclass(frozen=True)
class Measuring:
    """What all cases of a run have in common: the model, its streams, the classes, and the folder of the results."""

    model: CasePredictor
    streams: Streams
    scheme: LabelScheme
    folder: Path

    def prediction_file(self, case: str) -> Path:
        """Labels of a case."""
        return self.folder / "predictions" / f"{case}{self.scheme.file_ending}"

    def contested_file(self, case: str) -> Path:
        """Voxels (z, y, x) that are contested, as bits."""
        return self.folder / "contested" / f"{case}.npz"

    def measures_file(self, case: str) -> Path:
        """The rest."""
        return self.folder / "measures" / f"{case}.json"


def measure_case(measuring: Measuring, case: str, images: Sequence[Path], reference: Path | None = None) -> CaseResult:
    """Result of a case, of an earlier run if its images are the same, else predicted and written now.

    Raises:
        InputError: the images, or the reference, cannot be used; or the disk is full.
    """
    sources = {file.name: [(info := file_info(file)).size, info.crc32] for file in images}
    known = read_result(measuring, case)
    if known is not None and known.sources == sources:
        return known
    measuring.measures_file(case).unlink(missing_ok=True)
    model = measuring.model
    with collected_warnings():
        data, properties = model.preprocess(images)
        prediction = model.predict_preprocessed(data, properties)
        disagreement = measuring.streams.disagreement(data)
    with full_disk_told(measuring.folder, prediction.labels.nbytes):
        write_labels(measuring, case, prediction)
        write_contested(measuring, case, contested_voxels(model, prediction, disagreement))
        known_dice = reference_dice(measuring, case, reference) if reference else NAN
        result = result_of(measuring, case, prediction, disagreement, known_dice, sources, images[0])
        write_result(measuring, result)
    return result


def result_of(
    measuring: Measuring,
    case: str,
    prediction: Prediction,
    disagreement: Disagreement,
    known_dice: float,
    sources: dict[str, list[int]],
    image: Path,
) -> CaseResult:
    """The measures of a predicted case."""
    spacing, regions = prediction.properties["spacing"], measuring.model.regions
    uncertainty = surface_uncertainty(prediction.probabilities, prediction.labels, spacing, regions)
    return CaseResult(
        case,
        sources,
        voxel_volume_ml(prediction.properties, image),
        int(np.count_nonzero(prediction.labels)),
        measure_classes(prediction.labels, measuring.scheme.classes),
        *uncertainty,
        disagreement.kinds,
        disagreement.features,
        known_dice,
    )


def voxel_volume_ml(properties: Mapping[str, Any], file: Path) -> float:
    """Volume of a voxel in ml; NaN if the format has no voxel size, or a nominal one."""
    if header_geometry(dict(properties)) is None or is_nominal_in_header(file):
        return NAN
    return math.prod(map(float, properties["spacing"])) / 1000


def reference_dice(measuring: Measuring, case: str, reference: Path) -> float:
    """Mean Dice of the classes that prediction or reference has."""
    scheme = measuring.scheme
    pair = read_pair(measuring.prediction_file(case), reference, measuring.model.reader, PredictionLabels(scheme))
    return mean_of_defined(
        dice(np.isin(pair.prediction, values), np.isin(pair.reference, values)) for values in scheme.classes.values()
    )


def contested_voxels(model: CasePredictor, prediction: Prediction, found: Disagreement) -> NDArray[np.bool_]:
    """Voxels (z, y, x) whose label at least half of the decodings give up or, without any, is unsure."""
    p = prediction.probabilities
    if found.contested is None:
        return np.asarray((np.maximum(p, 1 - p).min(axis=0) if model.regions else p.max(axis=0)) < UNSURE_BELOW)
    properties, back = prediction.properties, model.predictor.plans_manager.transpose_backward
    shape = properties["shape_after_cropping_and_before_resampling"]
    share = resize(found.contested.numpy().astype(np.float32), shape, order=1) >= CONTESTED_SHARE
    whole = np.zeros(properties["shape_before_cropping"], dtype=bool)
    return np.asarray(insert_crop_into_image(whole, share, properties["bbox_used_for_cropping"])).transpose(back)


@contextmanager
def full_disk_told(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn what writers raise where the disk is full into one line; SimpleITK tells no reason.

    Raises:
        StoppedError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, InputError) as error:
        if getattr(error, "errno", None) not in FULL_DISK and shutil.disk_usage(folder).free >= needed_bytes:
            raise
        detail = "finished cases are kept"
        raise StoppedError(
            Problem("disk full", folder, detail, "make room, then run the same command again")
        ) from error


def write_labels(measuring: Measuring, case: str, prediction: Prediction) -> None:
    """Write the labels, and what the format has beside them (the voxel size of a .tif), whole or not at all."""
    file = measuring.prediction_file(case)
    file.parent.mkdir(parents=True, exist_ok=True)
    with folders.private_folder(file) as private:
        measuring.model.reader.write_seg(prediction.labels, str(private / file.name), prediction.properties)
        check_file_integrity(private / file.name)
        for written in private.iterdir():
            folders.flush_and_rename(written, file.with_name(written.name))


def write_contested(measuring: Measuring, case: str, contested: NDArray[np.bool_]) -> None:
    """Write :meth:`Measuring.contested_file`."""
    file = measuring.contested_file(case)
    file.parent.mkdir(exist_ok=True)
    with folders.atomic_write(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, bits=np.packbits(contested), shape=contested.shape)


def read_contested(file: Path) -> NDArray[np.bool_]:
    """The voxels in ``file``."""
    with np.load(file) as stored:
        shape = tuple(stored["shape"])
        return np.unpackbits(stored["bits"], count=math.prod(shape)).reshape(shape).astype(bool)


def write_result(measuring: Measuring, result: CaseResult) -> None:
    """Write :meth:`Measuring.measures_file`; NaN becomes null."""
    file = measuring.measures_file(result.case)
    file.parent.mkdir(exist_ok=True)
    content = asdict(result)
    del content["case"]
    folders.write_json(file, json.loads(json.dumps(content), parse_constant=lambda _: None))


def read_result(measuring: Measuring, case: str) -> CaseResult | None:
    """The result that an earlier run wrote; None if there is none, or a file beside it is missing."""
    files = measuring.prediction_file(case), measuring.contested_file(case)
    file = measuring.measures_file(case)
    if not all(one.is_file() for one in files):
        return None
    try:
        content = read_json(file, FORM, "remove it; the case is predicted anew", "unusable measures")
    except MissingFileError:
        return None
    classes = {
        name: ClassMeasures(**{**one, "largest": _number(one["largest"])}) for name, one in content["classes"].items()
    }
    numbers = {name: _number(content[name]) for name in ("voxel_ml", "entropy", "unsure", "dice")}
    return CaseResult(case=case, **{**content, **numbers, "classes": classes})


def _number(value: float | None) -> float:
    return NAN if value is None else value
