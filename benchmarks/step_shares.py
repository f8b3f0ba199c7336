"""Shares of matrix work, normalization and copies in the time of a step, measured with torch's profiler.

Limit: operations are classified by the names of operators (CPU) and kernels (GPU); unknown names are ``rest``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first match counts: names of fused kernels of torch.compile contain every operation in them.
OPERATION_KINDS = {
    "fused": r"^triton_",
    "normalization": r"norm|bn_(fw|bw)",
    "matrix work": r"conv|gemm|xmma|cutlass|fprop|dgrad|wgrad|::(add|b)?mm$",
    "copies": r"copy|memcpy|memset|::cat|clone",
}


def operation_kind(name: str) -> str:
    """Kind of an operator or kernel."""
    found = (kind for kind, pattern in OPERATION_KINDS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, "rest")


def measure_time_shares(step: Callable[[], None], device: torch.device, steps: int = 3) -> dict[str, float]:
    """Share of each kind in the time of all kernels (GPU) or operators (CPU) of ``steps`` steps."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        if on_gpu == (event.device_type == DeviceType.CUDA):
            spent[operation_kind(event.key)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {kind: time / spent.total() for kind, time in spent.most_common()}
