"""What processes exchange in a step: gradients, and whether something happened in one of them.

Limit: in a run of one process everything stays as it is. Setting up the processes is the trainer's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange.

    Parameters without gradient are left out; they must be the same ones in all processes.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def copy_from_first(module: torch.nn.Module) -> None:
    """Give parameters and buffers of ``module`` the values of the first process."""
    if dist.is_initialized():
        for value in module.state_dict().values():
            dist.broadcast(value, 0)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def joined_sum(values: torch.Tensor, distributed: bool) -> torch.Tensor:
    """The sum of ``values`` over all processes if the run is ``distributed``, differentiable.

    The trainer averages gradients; all_reduce sums both the values and, backwards, the gradients, so that the average
    is the gradient of the loss on the joined batch.
    """
    return all_reduce(values) if distributed and dist.is_initialized() else values


def gathered(values: torch.Tensor, distributed: bool, axis: int = 0) -> torch.Tensor:
    """The ``values`` of all processes, which have one shape, along ``axis``, without gradient."""
    if not (distributed and dist.is_initialized()):
        return values
    every = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(every, values.contiguous())
    return torch.cat(every, axis)


def any_process(condition: bool, device: torch.device) -> bool:
    """Whether ``condition`` holds in at least one process."""
    if not dist.is_initialized():
        return condition
    flag = torch.tensor([float(condition)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
