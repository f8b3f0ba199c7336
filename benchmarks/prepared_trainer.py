"""A trainer of a planned and preprocessed data set as ``nnUNetv2_train`` makes it, fold ``all``, and its start.

Limit: nnU-Net reads its folders from the environment when it is imported; import this when they are set.
"""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_plans_file
from nnunetv2_crossmatch.training.named import trainer_class


def prepared_trainer(name: str, dataset: str, configuration: str, device: torch.device, plans: str) -> Any:
    """The trainer called ``name``; ``dataset`` is an id or a name."""
    folder = folders.preprocessed_folder() / folders.dataset_name(dataset)
    planned = {**check_plans_file(folder / f"{plans}.json"), "continue_training": False}
    description = check_dataset_file(folder / "dataset.json")
    return trainer_class(name)(planned, configuration, "all", description, device)


def begin(trainer: Any) -> None:
    """Go on to the first step."""
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
