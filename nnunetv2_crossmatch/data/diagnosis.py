"""Dice of the pseudo-labels against reference labels of the unlabeled cases, for benchmarks.

The reference labels are in ``labelsUn`` of the raw data set, named like those in ``labelsTr``. They are preprocessed
like any label and get the geometric augmentation of their image. Limit: for logging only, never for the loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunetv2_crossmatch.data.manifest import file_crc32
from nnunetv2_crossmatch.data.plans_check import check_dataset_file
from nnunetv2_crossmatch.errors import InputError, NotReadError, Problem, raise_if_any
from nnunetv2_crossmatch.folders import atomic_write, unlabeled_folder, unlabeled_images_folder
from nnunetv2_crossmatch.json_files import read_json

SOURCES_FILE = "sources.json"


def reference_folder(unlabeled: Path) -> Path:
    """Folder of the preprocessed reference labels, next to ``unlabeled``: ``<case>.npy`` (1, S) int16."""
    return unlabeled.with_name(unlabeled.name + "_truth")


def preprocess_reference_labels(
    plans_manager: PlansManager, configuration: ConfigurationManager, cases: Sequence[str]
) -> Path:
    """Preprocess ``labelsUn`` of those ``cases`` whose result is missing or was made of another label or case.

    Returns:
        Folder of the results.

    Raises:
        InputError: reference labels are missing; all of them are named.
    """
    unlabeled = unlabeled_folder(plans_manager.dataset_name, configuration.data_identifier)
    folder = reference_folder(unlabeled)
    folder.mkdir(exist_ok=True)
    images = unlabeled_images_folder(plans_manager.dataset_name)
    labels, dataset_json = images.with_name("labelsUn"), check_dataset_file(images.with_name("dataset.json"))
    ending = dataset_json["file_ending"]
    fix = "put the reference label there, or train without diagnose1"
    missing = [case for case in cases if not (labels / f"{case}{ending}").is_file()]
    raise_if_any([Problem("reference label missing", labels / f"{case}{ending}", "diagnose1", fix) for case in missing])
    made_of = {
        case: [file_crc32(file) for file in (labels / f"{case}{ending}", unlabeled / f"{case}.pkl")] for case in cases
    }
    outdated = _forget_outdated(folder, made_of)
    for case in tqdm(outdated, desc="Preprocessing reference labels for diagnosis", unit="case", disable=not outdated):
        files = sorted(str(file) for file in images.glob(f"{case}_????{ending}"))
        preprocessor = configuration.preprocessor_class(verbose=False)
        label = str(labels / f"{case}{ending}")
        segmentation = preprocessor.run_case(files, label, plans_manager, configuration, dataset_json)[1]
        with atomic_write(folder / f"{case}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, segmentation.astype(np.int16))
    write_sources(folder, made_of)
    return folder


def _forget_outdated(folder: Path, made_of: Mapping[str, list[int]]) -> list[str]:
    """Cases whose result is missing or was not made of this; they are forgotten first, since the run may end early."""
    before = read_sources(folder)
    outdated = [
        case for case, crcs in made_of.items() if before.get(case) != crcs or not (folder / f"{case}.npy").is_file()
    ]
    write_sources(folder, {case: crcs for case, crcs in made_of.items() if case not in outdated})
    return outdated


def read_sources(folder: Path) -> dict[str, Any]:
    """CRC32 of label and case that each result in ``folder`` was made of; empty if that is not known.

    Raises:
        NotReadError: it could not be read.
    """
    try:
        content: dict[str, Any] = read_json(folder / SOURCES_FILE, {...: [int]}, "it is written anew")
    except NotReadError:
        raise
    except InputError:
        return {}
    return content


def write_sources(folder: Path, made_of: Mapping[str, list[int]]) -> None:
    """Write what :func:`read_sources` reads."""
    with atomic_write(folder / SOURCES_FILE) as temporary:
        temporary.write_text(json.dumps(made_of), encoding="utf-8")


class DatasetWithReferenceLabels:
    """nnU-Net's dataset of unlabeled cases, with the reference label of each case as its segmentation."""

    def __init__(self, cases: nnUNetBaseDataset, folder: Path) -> None:
        self.cases, self.folder, self.identifiers = cases, folder, cases.identifiers

    def load_case(self, identifier: str) -> tuple[Any, np.ndarray, Any, dict]:
        """Image, reference label (1, S), segmentation of the previous stage, properties: for nnU-Net's loader."""
        data, _, previous, properties = self.cases.load_case(identifier)
        return data, np.load(self.folder / f"{identifier}.npy", mmap_mode="c"), previous, properties


def mean_dice(labels: torch.Tensor, truth: torch.Tensor, label_manager: LabelManager) -> torch.Tensor:
    """Dice of hard labels over the batch, averaged over the foreground classes or regions that occur; NaN if none.

    Args:
        labels: pseudo-labels, (U, S) classes or (U, C, S) regions.
        truth: (U, 1, S) labels of the data set.
        label_manager: nnU-Net's label manager with the labels of each region.
    """
    if label_manager.has_regions:
        regions = [truth.new_tensor(region).flatten() for region in label_manager.foreground_regions]
        reference, predicted = torch.cat([torch.isin(truth, region) for region in regions], dim=1), labels
    else:
        classes = truth.new_tensor(label_manager.foreground_labels).view(1, -1, *[1] * (labels.ndim - 1))
        reference, predicted = truth == classes, labels[:, None] == classes
    overlap, size = (
        mask.transpose(0, 1).flatten(1).sum(1)  # int64: exact, and on every device
        for mask in (reference & predicted, reference * 1 + predicted * 1)
    )
    return (2 * overlap / size).nanmean()
