"""What the labeled cases tell a review: usual volumes and borders, and cases that were held out of the training.

Limit: reads labels and names of files; held-out cases are predicted by ``case_results``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm

from nnunetv2_crossmatch.data.raw_cases import group_by_case, images_by_case
from nnunetv2_crossmatch.data.reader_warnings import collected_warnings
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any, run_all
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, read_segmentation
from nnunetv2_crossmatch.review.case_results import CaseResult, voxel_volume_ml
from nnunetv2_crossmatch.review.measures import ClassMeasures, measure_classes, robust_z

NUMBERED_FOLD = re.compile(r"fold_\d+")


@dataclass(frozen=True)
class LabeledCase:
    """Measures by class of one labeled case, voxels of all classes together, and a voxel's volume in ml or NaN."""

    classes: Mapping[str, ClassMeasures]
    foreground: int
    voxel_ml: float


@dataclass(frozen=True)
class HeldOutCase:
    """A labeled case that was not learned from: its images, its label, and the index of the fold that predicts it.

    None: no fold has learned from it, and all predict it.
    """

    images: Sequence[Path]
    label: Path
    fold: int | None


def read_labeled_cases(folder: Path, scheme: LabelScheme, reader: BaseReaderWriter) -> list[LabeledCase]:
    """Measures of the labels in ``folder``; none where these are annotated in parts, and have no volume.

    Raises:
        InputError: a label is damaged.
    """
    if scheme.ignore is not None:
        return []
    files = sorted(folder.glob(f"[!.]*{scheme.file_ending}"))
    with collected_warnings():
        return run_all(partial(_read, file, scheme, reader) for file in tqdm(files, desc="labeled", unit="case"))


def _read(file: Path, scheme: LabelScheme, reader: BaseReaderWriter) -> LabeledCase:
    label = read_segmentation(file, reader)
    foreground = int((label.voxels != 0).sum())
    return LabeledCase(measure_classes(label.voxels, scheme.classes), foreground, voxel_volume_ml(label.header, file))


def has_measured_volume(cases: Sequence[LabeledCase | CaseResult]) -> bool:
    """Whether the voxels of all cases have a measured size; otherwise volumes are compared in voxels."""
    return all(case.voxel_ml == case.voxel_ml for case in cases)


def volume(case: LabeledCase | CaseResult, name: str | None, in_ml: bool) -> float:
    """Volume of a class, or of all together, in ml or voxels."""
    voxels = case.foreground if name is None else case.classes[name].voxels
    return voxels * (case.voxel_ml if in_ml else 1)


def volume_z(case: CaseResult, labeled: Sequence[LabeledCase], in_ml: bool) -> dict[str, float]:
    """Place of each class's volume among those of the labeled cases that have the class; see ``measures.robust_z``."""
    return {
        name: robust_z(
            volume(case, name, in_ml), [volume(one, name, in_ml) for one in labeled if one.classes[name].voxels]
        )
        for name in case.classes
    }


def held_out_of_folds(checkpoints: Sequence[Path], source: Path, ending: str) -> dict[str, HeldOutCase]:
    """Validation cases of the numbered folds, as far as the raw data set ``source`` has them.

    nnU-Net predicts them into ``validation`` when the training ends. Fold ``all`` has none.
    """
    images, labels = images_by_case(source / "imagesTr", ending), source / "labelsTr"
    found = {}
    for index, fold in enumerate(file.parent for file in checkpoints):
        validated = (fold / "validation").glob(f"[!.]*{ending}") if NUMBERED_FOLD.fullmatch(fold.name) else ()
        for case in sorted(file.name.removesuffix(ending) for file in validated):
            if case in images and (label := labels / f"{case}{ending}").is_file():
                found[case] = HeldOutCase(images[case], label, index)
    return found


def held_out_in_folders(images: Path, labels: Path, ending: str) -> dict[str, HeldOutCase]:
    """Cases of two folders that no fold learned from.

    Raises:
        InputError: a folder is missing or empty, or a label is missing.
    """
    fix = "check --held-out IMAGES LABELS"
    missing = [folder for folder in (images, labels) if not folder.is_dir()]
    raise_if_any([Problem("folder missing", folder, "no such folder", fix) for folder in missing])
    cases = group_by_case(images, ending)[0]
    if not cases:
        raise InputError(Problem("no held-out cases", images, f"no <case>_0000{ending} there", fix))
    files = {case: labels / f"{case}{ending}" for case in cases}
    lacking = [file for file in files.values() if not file.is_file()]
    raise_if_any([Problem("label missing", file, "its image is there", fix) for file in lacking])
    return {case: HeldOutCase(cases[case], files[case], None) for case in sorted(cases)}
