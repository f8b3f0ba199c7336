"""Support of several processes beyond nnU-Net's own: torchrun, one device per process, equal values.

Limit: does nothing in a run of one process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def join_torchrun(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment; nnU-Net supports its own spawn only."""
    if dist.is_initialized() or "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def wait_for_first_process() -> None:
    """Wait for the first process, however long it takes; NCCL has a timeout of minutes."""
    if dist.is_initialized():
        patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        dist.barrier(patient)


def device_of_process(device: torch.device) -> torch.device:
    """Device of this process: LOCAL_RANK counts within the node, the global rank does not."""
    if device.type != "cuda" or not dist.is_initialized():
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", dist.get_rank())))


def samples_per_process(total: int, rank: int, world_size: int) -> int:
    """Samples of this process out of ``total``, as even as possible, the first ranks taking the rest."""
    return total // world_size + (rank < total % world_size)


def from_first_process(value: Value) -> Value:
    """The first process's ``value``."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def mean_over_processes(values: Sequence[float]) -> float:
    """Mean over steps and processes."""
    mean = sum(values) / len(values)
    if not dist.is_initialized():
        return mean
    means = [0.0] * dist.get_world_size()
    dist.all_gather_object(means, mean)
    return sum(means) / len(means)
