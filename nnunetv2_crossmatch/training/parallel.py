"""nnU-Net's trainer in several processes: a share of the batch and a device for each, on CPUs, too.

Limit: hooks around process groups; knows nothing of unlabeled data. ``learning.exchange`` has the exchange in a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_crossmatch.training.distributed import device_of_process, join_torchrun, samples_per_process
from nnunetv2_crossmatch.training.durable import DurableTrainer
from nnunetv2_crossmatch.training.record import RunRecord


class ParallelTrainer(DurableTrainer):
    """Joins torchrun's process group; supports several nodes and CPUs, which nnU-Net does not.

    Attributes:
        distributed: whether there are several processes.
    """

    is_ddp: bool
    network: Any

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        join_torchrun(device)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if device.type == "cpu":  # with several processes the host takes CUDA for granted
            self.device, self.grad_scaler = device, None
        self.device, self.distributed = device_of_process(self.device), self.is_ddp

    def initialize(self) -> None:
        """The host's, with DistributedDataParallel on this process's own device."""
        with self._with_is_ddp(False):  # the host would give DDP the global rank as its device
            super().initialize()
        if self.is_ddp:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=devices)

    def write_run_record(self, now: RunRecord) -> None:
        """As inherited, with the number of processes; another number is told, since the batches are others then."""
        before = self.record.processes if self.record is not None and self.resumed else None
        if before not in (None, self.processes):
            self.print_to_log_file(f"{before} processes before, {self.processes} now: other batches are drawn.")
        super().write_run_record(replace(now, processes=self.processes))

    @property
    def processes(self) -> int:
        """Number of processes of this training."""
        return dist.get_world_size() if self.distributed else 1

    def share_of(self, total: int) -> int:
        """Samples of this process out of ``total``."""
        return samples_per_process(total, self.local_rank, self.processes) if self.distributed else total

    @property
    def local_network(self) -> Any:
        """The network without DistributedDataParallel, compiled if it is."""
        return self.network.module if self.is_ddp else self.network

    @property
    def bare_network(self) -> Any:
        """The network itself, neither wrapped nor compiled."""
        return getattr(self.local_network, "_orig_mod", self.local_network)

    def _set_batch_size_and_oversample(self) -> None:
        with self._with_is_ddp(self.distributed):
            super()._set_batch_size_and_oversample()

    def _build_loss(self) -> torch.nn.Module:
        with self._with_is_ddp(self.distributed):
            return super()._build_loss()

    def local_loss(self) -> torch.nn.Module:
        """The host's loss without exchange between processes."""
        if not self.distributed:
            return self.loss
        with self._with_is_ddp(False):
            return nnUNetTrainer._build_loss(self)

    @contextmanager
    def _with_is_ddp(self, flag: bool) -> Iterator[None]:
        """Set ``is_ddp``, by which nnU-Net tells whether there are several processes, inside the block."""
        before, self.is_ddp = self.is_ddp, flag
        try:
            yield
        finally:
            self.is_ddp = before
