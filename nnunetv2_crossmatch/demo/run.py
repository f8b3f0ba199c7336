"""The demo: runs all commands of a user on generated volumes, and prints a table and a picture of the results.

Limit: demonstrates the commands; the numbers mean nothing for patients.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_crossmatch import ext_trainers
from nnunetv2_crossmatch.demo.phantom import write_dataset
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.evaluation.score_files import read_scores
from nnunetv2_crossmatch.folders import write_json
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.methods.crossmatch import CrossMatchSettings
from nnunetv2_crossmatch.report.contours import CaseVolumes, draw_cases
from nnunetv2_crossmatch.training.supervised import HOST_NAME

DATASET_ID = 501
DATASET = f"Dataset{DATASET_ID}_LA"
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetDemoPlans"
FEATURES_PER_STAGE = (8, 16, 32, 64)
STAGE_COUNT = 12
COLUMNS = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "95HD mm", "asd_mm": "ASD mm"}


@dataclass(frozen=True)
class DemoSize:
    """Size of the demo: numbers of cases, volume shape (x, y, z), and length of both trainings."""

    labeled: int
    unlabeled: int
    test: int
    shape: tuple[int, int, int]
    epochs: int
    iterations: int

    @property
    def trainers(self) -> dict[str, str]:
        """Name in the table to name for ``-tr`` of nnU-Net's trainer and of CrossMatch with as many steps."""
        length = f"{self.epochs}epochs_iters{self.iterations}_valiters2"
        return {"supervised": f"{HOST_NAME}_{length}", "CrossMatch": f"{CrossMatchSettings.trainer}_{length}"}


FULL_SIZE = DemoSize(labeled=2, unlabeled=12, test=6, shape=(40, 40, 16), epochs=12, iterations=50)
QUICK_SIZE = DemoSize(labeled=2, unlabeled=2, test=3, shape=(32, 32, 16), epochs=1, iterations=2)


def run_demo(folder: Path, picture: Path, size: DemoSize, device: str) -> str:
    """Run all stages in the empty ``folder``, write ``picture``, return the table.

    Raises:
        InputError: a stage failed; its output and the logs stay in ``folder``.
    """
    stages = Stages(STAGE_COUNT, folder, make_environment(folder, device))
    prepare_dataset(stages, size)
    for name, trainer in size.trainers.items():
        train_and_score(stages, name, trainer, size.epochs, device)
    with stages.stage(f"picture of the worst, the median and the best case: {picture}"):
        scores = {name: read_scores(folder / "predictions" / name / "scores.json") for name in size.trainers}
        draw_cases(
            [_read_case_volumes(folder, label, case, scores) for label, case in select_cases(scores).items()], picture
        )
    return f"{format_score_table(scores)}\n{stages.elapsed()} in all"


def prepare_dataset(stages: Stages, size: DemoSize, seed: int = 0) -> None:
    """Five stages: generate volumes from ``seed``, convert, plan, shrink the plans, preprocess the unlabeled ones."""
    data, dataset = stages.folder / "generated", str(DATASET_ID)
    with stages.stage(f"generate {size.labeled} labeled, {size.unlabeled} unlabeled and {size.test} test volumes"):
        splits = write_dataset(data, size.labeled, size.unlabeled, size.test, seed=seed, shape=size.shape)
    lists = ("--labeled", str(size.labeled), "--splits", str(splits))
    stages.run("nnUNetv2_crossmatch_convert_LA", "-i", str(data), "-d", dataset, *lists)
    stages.run("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", CONFIGURATION, "-npfp", "1", "-np", "1")
    plans = stages.folder / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json"
    with stages.stage(f"plans with few features, so that minutes suffice: {PLANS}"):
        write_json(plans.with_name(f"{PLANS}.json"), reduce_plans(read_json(plans, dict, "run the demo again")))
    stages.run("nnUNetv2_crossmatch_preprocess", "-d", dataset, "-c", CONFIGURATION, "-p", PLANS, "-np", "2")


def train_and_score(stages: Stages, name: str, trainer: str, epochs: int, device: str) -> None:
    """Three stages: train, predict the test volumes into ``predictions/<name>``, evaluate them."""
    model = ("-tr", trainer, "-p", PLANS, "-device", device)
    stages.run("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, "all", *model, epochs=epochs)
    predictions = str(stages.folder / "predictions" / name)
    where = ("-i", str(_raw_folder(stages.folder, "imagesTs")), "-o", predictions, "-d", str(DATASET_ID))
    no_workers = ("-npp", "0", "-nps", "0")  # starting workers takes longer than predicting these volumes
    stages.run("nnUNetv2_predict", *where, "-c", CONFIGURATION, "-f", "all", *model, *no_workers)
    stages.run("nnUNetv2_crossmatch_evaluate", "-r", str(_raw_folder(stages.folder, "labelsTs")), "-p", predictions)


def reduce_plans(plans: Mapping[str, Any]) -> dict[str, Any]:
    """``plans`` with another name and fewer stages, features and layers; the preprocessed data are valid for both."""
    changed: dict[str, Any] = json.loads(json.dumps({**plans, "plans_name": PLANS}))
    network = changed["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    stages = min(len(FEATURES_PER_STAGE), network["n_stages"])
    for key in ("kernel_sizes", "strides"):
        network[key] = network[key][:stages]
    network.update(n_stages=stages, features_per_stage=list(FEATURES_PER_STAGE[:stages]))
    network.update(n_conv_per_stage=[1] * stages, n_conv_per_stage_decoder=[1] * (stages - 1))
    return changed


def select_cases(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Worst, median and best case by the Dice averaged over both methods, which favours neither."""
    cases = list(next(iter(scores.values()))["cases"])
    order = sorted(cases, key=lambda case: np.mean([_case_dice(one, case) for one in scores.values()]))
    return {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}


def format_score_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Means over the test cases, one row per method."""
    count = len(next(iter(scores.values()))["cases"])
    rows = [f"Mean of {count} test cases", f"{'':12}" + "".join(f"{title:>10}" for title in COLUMNS.values())]
    for name, one in scores.items():
        summary = next(iter(one["summary"].values()))
        rows.append(f"{name:12}" + "".join(f"{_format_score(summary[key]['mean']):>10}" for key in COLUMNS))
    return "\n".join([*rows, "supervised: the host's nnUNetTrainer on the labeled cases alone, as many steps."])


def _format_score(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _case_dice(scores: Mapping[str, Any], case: str) -> float:
    return float(next(iter(scores["cases"][case].values()))["dice"])


def _read_case_volumes(folder: Path, label: str, case: str, scores: Mapping[str, Mapping[str, Any]]) -> CaseVolumes:
    dices = ", ".join(f"{name} {_case_dice(one, case):.3f}" for name, one in scores.items())
    image = sitk.ReadImage(str(_raw_folder(folder, "imagesTs") / f"{case}_0000.nii.gz"))
    x, y, z = image.GetSpacing()
    predictions = {name: _read_labels(folder / "predictions" / name / f"{case}.nii.gz") for name in scores}
    reference = _read_labels(_raw_folder(folder, "labelsTs") / f"{case}.nii.gz")
    title = f"{label} case, {case}: Dice {dices}"
    return CaseVolumes(title, sitk.GetArrayFromImage(image), reference, predictions, (z, y, x))


def _read_labels(file: Path) -> NDArray[np.uint8]:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), np.uint8)


def _raw_folder(folder: Path, part: str) -> Path:
    return folder / "nnUNet_raw" / DATASET / part


def make_environment(folder: Path, device: str) -> dict[str, str]:
    """Environment variables of this process, with nnU-Net's folders in ``folder`` and settings for fast small runs."""
    roots = {name: folder / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for root in roots.values():
        root.mkdir(parents=True)
    # Page faults of large tensors take half of the CPU time; spinning threads slow a busy machine down.
    memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "60000000000", "OMP_WAIT_POLICY": "PASSIVE"}
    workers = {"nnUNet_n_proc_DA": "1"} if device == "cpu" else {}
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{name: str(root) for name, root in roots.items()},
        "nnUNet_extTrainer": next(iter(ext_trainers.__path__)),
        "nnUNet_compile": "f",  # compiling takes longer than these runs
        "nnUNet_def_n_proc": "1",  # a worker takes longer to start than a case takes
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **memory,
        **workers,
    }
