"""Bytes that the operations of a step read and write, counted on fake tensors, for a roofline.

Each operation counts every tensor that it reads and every one that it writes once; views count nothing. Limit: an upper
bound for compiled steps, which fuse operations; caches are not modelled.

    python benchmarks/step_traffic.py benchmarks/gpu_stages/work.json

writes GFLOP and GB of the sizes and ways that ``benchmarks/gpu.py`` measures; it takes minutes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from step import count_flops
from step_ways import GENERIC, BenchmarkCase, StepBenchmark
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes of all operations inside the block.

    Attributes:
        bytes: read and written.
        operations: those that are no views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not is_view(func):
            self.operations += 1
            self.bytes += sum(map(size_of, tree_leaves((args, kwargs or {}, result))))
        return result


def is_view(func: Any) -> bool:
    """Whether an operation only looks at its input in another way, or makes memory without filling it."""
    written = any(returned.alias_info is not None and returned.alias_info.is_write for returned in func._schema.returns)
    aliases = any(returned.alias_info is not None for returned in func._schema.returns)
    return (aliases and not written) or "empty" in func._schema.name or func._schema.name == "aten::detach"


def size_of(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def count_bytes(case: BenchmarkCase, way: str, amp: bool) -> int:
    """Bytes of one step; with ``amp`` in bfloat16, which is as wide as float16."""
    with FakeTensorMode():
        bench = StepBenchmark(case, torch.device("cpu"), amp, False)
        bench.scaler = torch.GradScaler("cpu", enabled=False)  # reads values, which fake tensors do not have
        bench.run_step(way)  # makes the optimizer's state
        with TrafficCounter() as counter:
            bench.run_step(way)
    return counter.bytes


def main() -> None:
    ways = ("supervised", "stacked", "sequential", "released", "stacked_recompute", "stacked_students2")
    counted: dict[str, dict[str, dict[str, float]]] = {}
    for case in (GENERIC[2], GENERIC[0]):
        flops = count_flops(case, ways)
        counted[case.title] = {
            way: {
                "gflop": round(flops[way] / 1e9, 1),
                "gbyte": round(count_bytes(case, way, True) / 1e9, 1),
                "gbyte_fp32": round(count_bytes(case, way, False) / 1e9, 1),
            }
            for way in ways
        }
        Path(sys.argv[1]).write_text(json.dumps(counted, indent=1) + "\n")


if __name__ == "__main__":
    main()
