"""What the second training of self-training reads: the plans of the first one, and folds with the predicted cases.

Limit: writes JSON files below the new data set's preprocessed folder; preprocessing is nnU-Net's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_plans_file
from nnunetv2_crossmatch.data.raw_cases import group_by_case
from nnunetv2_crossmatch.folders import preprocessed_folder, raw_folder, write_json
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.training.requirements import check_splits

FINGERPRINT = "dataset_fingerprint.json"
FOLDS = "splits_final.json"


def prepare_second_training(source: str, target: str, plans_name: str, fold: str) -> Path:
    """Give a data set of labeled and predicted cases the plans of the first training, and folds; returns their file.

    In a training list the labeled cases are drawn half of the time; validation cases are those of the first folds.
    After fold ``all`` there is one fold, which trains on all cases and is validated on the labeled ones.

    Args:
        source, target: names of the data sets, ``DatasetXXX_Name``.
        plans_name: identifier of the plans.
        fold: of the first training, a number or ``all``.

    Raises:
        InputError: the source is not planned, or one of its files is damaged.
    """
    planned, folder = preprocessed_folder() / source, preprocessed_folder() / target
    plans = check_plans_file(planned / f"{plans_name}.json")
    labeled = _cases(raw_folder() / source)
    predicted = sorted({*_cases(raw_folder() / target)} - {*labeled})
    given = [] if fold == "all" else check_splits(planned / FOLDS, labeled)
    folds = given or [{"train": labeled, "val": labeled}]
    give_plans(folder, {**plans, "dataset_name": target}, plans_name, read_fingerprint(planned))
    joined = [{"train": half_labeled(fold["train"], predicted), "val": fold["val"]} for fold in folds]
    write_json(folder / FOLDS, joined)
    return folder / FOLDS


def give_plans(folder: Path, plans: Mapping[str, Any], plans_name: str, fingerprint: Mapping[str, Any]) -> None:
    """Write what preprocessing and training look for in a preprocessed folder that is new; the plans last."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "dataset.json", check_dataset_file(raw_folder() / folder.name / "dataset.json"))
    write_json(folder / FINGERPRINT, fingerprint)
    write_json(folder / f"{plans_name}.json", plans)


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """The content of ``dataset_fingerprint.json``, which nnU-Net's trainer copies to its results."""
    content: dict[str, Any] = read_json(folder / FINGERPRINT, dict, "plan the data set again", nan=True)
    return content


def half_labeled(labeled: Sequence[str], predicted: Sequence[str]) -> list[str]:
    """Names repeated so that of equal draws half are ``labeled``; nnU-Net draws from such a list as it is."""
    length = math.lcm(len(labeled), len(predicted))
    return sorted([*labeled] * (length // len(labeled)) + [*predicted] * (length // len(predicted)))


def _cases(raw: Path) -> list[str]:
    return list(group_by_case(raw / "imagesTr", check_dataset_file(raw / "dataset.json")["file_ending"])[0])
