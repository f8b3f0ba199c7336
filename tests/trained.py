"""A model folder as the host leaves it, as far as the report reads it.

Limit: without weights; nothing can be predicted with it.
"""

from __future__ import annotations

from pathlib import Path

import torch

PLANS = {
    "dataset_name": "Dataset001_Balls",
    "plans_name": "nnUNetPlans",
    "configurations": {
        "3d_fullres": {
            "patch_size": [16, 32, 32],
            "batch_size": 2,
            "spacing": [2.0, 1.0, 1.0],
            "architecture": {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet"},
        }
    },
}


def write_model(folder: Path, trainer: str = "nnUNetTrainerCrossMatch_3epochs_eta0p2", folds: int = 1) -> Path:
    """Model folder ``folder`` with final checkpoints of three epochs."""
    for fold in range(folds):
        (folder / f"fold_{fold}").mkdir(parents=True)
        checkpoint = {
            "network_weights": {},
            "current_epoch": 3,
            "trainer_name": trainer,
            "init_args": {"plans": PLANS, "configuration": "3d_fullres"},
            "logging": {
                "train_losses": [0.3, 0.2, 0.1],
                "val_losses": [0.4, 0.3, 0.2],
                "loss_ip": [float("nan"), 0.5, 0.4],
                "dice_per_class_or_region": [[0.1], [0.2], [0.3]],
                "epoch_start_timestamps": [0.0, 3600.0, 7200.0],
                "epoch_end_timestamps": [1800.0, 5400.0, 9000.0],
            },
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text("{}")
    return folder
