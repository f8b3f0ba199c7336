"""The whole way on a CUDA device: train, run out of memory, continue, predict, export; tiny data, one process."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import maybe_load_checkpoint
from trainers import make_trainer, weights_of

from nnunetv2_crossmatch.cli import export

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHORT = "nnUNetTrainerCrossMatch_2epochs_iters3_valiters1_warmup0_seed1"
CUDA = torch.device("cuda")


@pytest.fixture
def trained(prepared_copy):
    trainer = make_trainer(prepared_copy, SHORT, device=CUDA)
    trainer.run_training()
    return trainer


def test_a_training_on_a_gpu_is_predicted_with_and_exported(trained, prepared_copy, monkeypatch, tmp_path):
    assert trained.grad_scaler is not None
    assert next(trained.network.parameters()).is_cuda
    assert weights_of(trained).isfinite().all()
    predictor = nnUNetPredictor(device=CUDA, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trained.output_folder_base, ("all",), "checkpoint_final.pth")
    (tmp_path / "predicted").mkdir()
    predictor.predict_from_files_sequential(str(prepared_copy.raw / "imagesTs"), str(tmp_path / "predicted"))
    assert len(list((tmp_path / "predicted").glob("*.nii.gz"))) == 2
    arguments = ("-m", trained.output_folder_base, "-o", str(tmp_path / "stock"))
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_crossmatch_export", *arguments])
    export.main()
    (stock,) = (tmp_path / "stock").rglob("checkpoint_final.pth")
    assert torch.load(stock, weights_only=False)["trainer_name"] == "nnUNetTrainer"


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(prepared_copy):
    first = make_trainer(prepared_copy, SHORT, device=CUDA)
    first.on_train_start()
    first.on_epoch_start()
    first.on_train_epoch_start()
    first.train_step(next(first.dataloader_train))
    first.save_latest()
    first.lock.release()
    second = make_trainer(prepared_copy, SHORT, continuing=True, device=CUDA)
    maybe_load_checkpoint(second, True, False)
    assert torch.equal(weights_of(second), weights_of(first))
    assert second.grad_scaler.get_scale() == first.grad_scaler.get_scale()
    second.run_training()
    assert second.current_epoch == 2


def test_a_step_that_runs_out_of_memory_ends_sequential_on_the_device(prepared_copy):
    """The limit is between what the sequential and the stacked step allocate, with a patch that makes them differ."""
    peaks = {}
    for execution in ("sequential", "stacked"):
        trainer = started_with_large_patch(prepared_copy, f"{SHORT}_exec{execution}")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer.train_step(next(trainer.dataloader_train))
        peaks[execution] = torch.cuda.max_memory_allocated()
        trainer.lock.release()
        del trainer
    assert peaks["stacked"] > 1.3 * peaks["sequential"]
    trainer = started_with_large_patch(prepared_copy, SHORT)
    batch = next(trainer.dataloader_train)
    torch.cuda.empty_cache()
    cap = sum(peaks.values()) / 2 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(cap)
    try:
        values = trainer.train_step(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trainer.method.stacked is False
    assert np.isfinite(float(values["loss"]))


def started_with_large_patch(tiny, name):
    """A trainer before its first step; rows of 256 voxels, which the loader pads."""
    trainer = make_trainer(tiny, name, device=CUDA)
    trainer.configuration_manager.configuration["patch_size"] = [256, 256]
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer
