"""Where the time of a step goes: shares of matrix work, normalization and copies, by torch's profiler.

Limit: kinds are told by the names of operators (CPU) and kernels (GPU); what no name tells is the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first that matches counts: fused kernels of torch.compile name every operation that is in them.
KINDS = {
    "fused": r"^triton_",
    "normalization": r"norm|bn_(fw|bw)",
    "matrix work": r"conv|gemm|xmma|cutlass|fprop|dgrad|wgrad|::(add|b)?mm$",
    "copies": r"copy|memcpy|memset|::cat|clone",
}


def kind_of(name: str) -> str:
    """Kind of work of an operator or a kernel."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, "rest")


def time_shares(step: Callable[[], None], device: torch.device, steps: int = 3) -> dict[str, float]:
    """Share of each kind in the time of ``steps`` steps: of all kernels on a GPU, of all operators on a CPU."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        if on_gpu == (event.device_type == DeviceType.CUDA):
            spent[kind_of(event.key)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {kind: time / spent.total() for kind, time in spent.most_common()}
