"""Support of several processes beyond nnU-Net's own: torchrun, one device per process, equal values.

Limit: does nothing in a run of one process.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")
_waits = itertools.count()  # of this process; all processes wait equally often


def join_torchrun(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment; nnU-Net supports its own spawn only."""
    if dist.is_initialized() or "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def wait_for_first_process() -> None:
    """Wait until the first process comes here, too, however long it takes.

    Through the store by which the processes found each other: NCCL has a timeout of minutes, and gloo would have to
    resolve the host's name.
    """
    if not dist.is_initialized():
        return
    store = dist.distributed_c10d._get_default_store()
    key = f"first process was here {next(_waits)} times"
    if dist.get_rank() == 0:
        store.set(key, "")
    else:
        store.wait([key], timedelta(days=7))


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
