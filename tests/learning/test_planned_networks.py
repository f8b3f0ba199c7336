"""Whatever network and configuration the host plans for a data set, unchanged: a step trains it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TinyDataset, fork_pools_of
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from trainers import started

from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled

NAME = "nnUNetTrainerCrossMatch_1epochs_iters1_valiters1_warmup0_batch2"
PLANNERS = {"M": nnUNetPlannerResEncM, "L": nnUNetPlannerResEncL, "XL": nnUNetPlannerResEncXL}


def planned(planner: ExperimentPlanner, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The planner's configurations; it takes the number of loader workers as a thread count and fails with 0."""
    with monkeypatch.context() as patched:
        patched.setenv("nnUNet_n_proc_DA", "1")
        return planner.plan_experiment()["configurations"]


def trains(trainer) -> None:
    before = torch.cat([p.detach().flatten() for p in trainer.network.parameters()])
    report = trainer.train_step(next(trainer.dataloader_train))
    assert all(np.isfinite(float(value)) for value in report.values())
    moved = torch.cat([p.detach().flatten() for p in trainer.network.parameters()]) != before
    assert moved.float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("size", "configuration"), [("M", "3d_fullres"), ("L", "2d"), ("XL", "2d")])
def test_residual_encoder_presets_train_as_planned(prepared_copy: TinyDataset, monkeypatch, size, configuration):
    planner = PLANNERS[size](prepared_copy.id)
    plans = planned(planner, monkeypatch)[configuration]["architecture"]
    trainer = started(prepared_copy, NAME, configuration, planner.plans_identifier)
    blocks = [len(stage.blocks) for stage in trainer.network.encoder.stages]
    assert plans["network_class_name"].endswith("ResidualEncoderUNet")
    assert blocks == list(plans["arch_kwargs"]["n_blocks_per_stage"])
    trains(trainer)


@pytest.mark.slow
def test_3d_lowres_trains_as_planned(tiny_copy: TinyDataset, monkeypatch):
    """A fine target spacing and hardly any GPU memory make the host plan a low resolution even for tiny volumes."""
    planner = ExperimentPlanner(
        tiny_copy.id, 0.2, plans_name="nnUNetLowPlans", overwrite_target_spacing=(0.4, 0.3, 0.3)
    )
    fork_pools_of(default_preprocessor, monkeypatch)
    assert "3d_lowres" in planned(planner, monkeypatch)
    preprocess_dataset(tiny_copy.id, "nnUNetLowPlans", ("3d_lowres",), (1,))
    preprocess_unlabeled(tiny_copy.name, "nnUNetLowPlans", ["3d_lowres"], 1)
    trainer = started(tiny_copy, NAME, "3d_lowres", "nnUNetLowPlans")
    assert len(trainer.unlabeled_cases) == 4
    trains(trainer)
