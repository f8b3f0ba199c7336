"""The supervised control: the host's own trainer for a run of any length, ``nnUNetTrainer_12epochs_iters50_valiters2``.

Limit: the length and nothing else; for other changes the host has variants of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, cast

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

HOST_NAME = nnUNetTrainer.__name__
NAME = re.compile(rf"{HOST_NAME}_([1-9]\d*)epochs(?:_iters([1-9]\d*))?(?:_valiters([1-9]\d*))?", re.ASCII)
LENGTH = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")


class SupervisedTrainer(nnUNetTrainer):
    """``nnUNetTrainer`` with the attributes of ``length`` in place of its own (1000 epochs, 250 and 50 iterations)."""

    length: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        for name, value in self.length.items():
            setattr(self, name, value)


@cache
def _trainer_class(name: str) -> type[SupervisedTrainer]:
    match = NAME.fullmatch(name)
    if match is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    length = {what: int(number) for what, number in zip(LENGTH, match.groups(), strict=True) if number is not None}
    namespace = {"length": length, "__module__": __name__, "__qualname__": name}
    return cast(type[SupervisedTrainer], type(name, (SupervisedTrainer,), namespace))


def __getattr__(name: str) -> Any:
    return _trainer_class(name)
