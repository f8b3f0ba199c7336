"""Regions, several classes and the ignore label train like plain labels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import TinyDataset, copy_dataset, fork_pools_of
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from scipy.ndimage import binary_erosion
from trainers import started

from nnunetv2_crossmatch.data import case_preprocessing
from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled

NAME = "nnUNetTrainerCrossMatch_2epochs_iters2_valiters1_seed1_warmup0_tau0p5"
LABELS = {
    "classes": {"background": 0, "rim": 1, "core": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
}


def relabel(tiny: TinyDataset, labels: dict) -> None:
    """A core inside every blob, and the upper half of every label ignored: partly annotated volumes."""
    for file in (tiny.raw / "labelsTr").iterdir():
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image)
        array[binary_erosion(array == 1, iterations=2)] = 2
        array[: len(array) // 2] = 3
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(file))
    description = json.loads((tiny.raw / "dataset.json").read_text())
    description["labels"] = labels
    if any(isinstance(value, list) for value in labels.values()):
        description["regions_class_order"] = [1, 2]
    (tiny.raw / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(params=LABELS, scope="module")
def relabeled(request, tiny_dataset, tmp_path_factory):
    """The tiny data set with other labels, which its plans do not depend on, preprocessed anew."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny = copy_dataset(tiny_dataset, tmp_path_factory.mktemp(request.param), monkeypatch)
        for module in (default_preprocessor, case_preprocessing):
            fork_pools_of(module, monkeypatch)
        relabel(tiny, LABELS[request.param])
        shutil.copy(tiny.raw / "dataset.json", tiny.preprocessed)
        preprocess_dataset(tiny.id, "nnUNetPlans", ("2d",), (1,))
        preprocess_unlabeled(tiny.name, "nnUNetPlans", ["2d"], 1)
        yield tiny


@pytest.mark.slow
def test_partly_annotated_volumes_train(relabeled):
    trainer = started(relabeled, NAME)
    regions = trainer.label_manager.has_regions
    for _ in range(3):
        batch = next(trainer.dataloader_train)
        report = trainer.train_step(batch)
        assert all(np.isfinite(float(value)) for value in report.values())
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        validated = trainer.validation_step(next(trainer.dataloader_val))
    assert len(validated["tp_hard"]) == 2
    assert trainer.method.criterion(distributed=False).classes == ((0, 1) if regions else (0, 1, 2))
    assert trainer.settings.tau_at(0, trainer.method.task.foreground) == 0.5
