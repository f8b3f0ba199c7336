"""Stage c: where the time of a stacked step goes on the device, and whether it waits for the loader.

The profile is of a step on random images; the loader is measured in a training with the prepared data, as many workers
as nnU-Net starts. Limit: a few steps each.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prepared_trainer import begin, prepared_trainer
from step_shares import operation_kind
from step_ways import GENERIC, BenchmarkCase, StepBenchmark
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_stages.sheet import Sheet, stage_arguments

SHOWN = 15
STEPS, WARM_UP = 40, 10
DRY_STEPS, DRY_WARM_UP = 2, 1
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "_local_scalar_dense", "nonzero")
"""What makes the host wait for the device, as the profiler names it."""


def profiled(case: BenchmarkCase, way: str, device: torch.device, steps: int) -> dict[str, Any]:
    """Kernels by time, waits per step, and the share of the time in which no kernel ran."""
    bench = StepBenchmark(case, device, True, False)
    step, on_gpu = partial(bench.run_step, way), device.type == "cuda"
    for _ in range(2):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    events = list(profiler.events())
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    ran = [(event.time_range.start, event.time_range.end) for event in events if event.device_type == kind]
    averages = [one for one in profiler.key_averages() if one.device_type == kind]
    spent = {one.key: (one.self_device_time_total if on_gpu else one.self_cpu_time_total) for one in averages}
    calls = {one.key: one.count for one in averages}
    total = sum(spent.values()) or 1
    by_kind: Counter[str] = Counter()
    for name, microseconds in spent.items():
        by_kind[operation_kind(name)] += microseconds
    waits = Counter(event.name for event in events if any(event.name.endswith(one) for one in WAITS))
    return {
        "ms": 1000 * wall / steps,
        "idle share": max(0.0, 1 - busy_microseconds(ran) / 1e6 / wall),
        "kernels per step": sum(calls.values()) / steps,
        "waits per step": {name: count / steps for name, count in waits.items()},
        "shares": {name: value / total for name, value in by_kind.most_common()},
        "kernels": [
            {"name": name[:100], "share": spent[name] / total, "calls": calls[name] / steps}
            for name in sorted(spent, key=lambda name: -spent[name])[:SHOWN]
        ],
    }


def busy_microseconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of ``spans``."""
    busy, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def make_trainer(dataset: dict[str, Any], name: str, device: torch.device) -> Any:
    """The trainer of that name for a prepared data set, fold ``all``."""
    return prepared_trainer(name, dataset["name"], dataset["configuration"], device, "nnUNetPlans")


def beside_the_loader(dataset: dict[str, Any], device: torch.device, steps: int, warm_up: int) -> dict[str, Any]:
    """Waiting for the loader and the step, each in ms, medians over ``steps``."""
    trainer = make_trainer(dataset, f"nnUNetTrainerCrossMatch_1epochs_iters{steps + warm_up}_seed0_warmup0", device)
    begin(trainer)
    waited, took = [], []
    for _ in range(steps + warm_up):
        start = time.perf_counter()
        batch = next(trainer.dataloader_train)
        loaded = time.perf_counter()
        trainer.train_step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        waited.append(loaded - start)
        took.append(time.perf_counter() - loaded)
    trainer.stop_loaders()
    waited, took = waited[warm_up:], took[warm_up:]
    return {
        "patch": list(trainer.configuration_manager.patch_size),
        "batch": [trainer.batch_size, trainer.unlabeled_batch_size],
        "workers": getattr(trainer.dataloader_train, "num_processes", 0),
        "stacked": trainer.method.stacked,
        "wait_ms": milliseconds(waited),
        "step_ms": milliseconds(took),
        "waiting share": sum(waited) / (sum(waited) + sum(took)),
    }


def milliseconds(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def prepared(result: Path) -> list[dict[str, Any]]:
    """The data sets that are ready, by the file beside this stage's."""
    file = result.with_name("prepare.json")
    return json.loads(file.read_text())["data"] if file.exists() else []


def main() -> None:
    arguments = stage_arguments()
    os.environ["nnUNet_compile"] = "f"
    sheet, dry = Sheet(arguments.result, arguments.seconds), arguments.dry
    device = torch.device("cuda" if torch.cuda.is_available() and not dry else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    elif "nnUNet_n_proc_DA" not in os.environ:
        os.environ["nnUNet_n_proc_DA"] = "1"
    cases = [BenchmarkCase("3d 8 x 8 x 8", (8, 8, 8), 2, (2, 4))] if dry else [GENERIC[2], GENERIC[0]]
    sheet.attempt("profile", partial(profiled, cases[0], "stacked", device, 1 if dry else 3))
    steps = (DRY_STEPS, DRY_WARM_UP) if dry else (STEPS, WARM_UP)
    for dataset in prepared(arguments.result):
        title = f"loader, {dataset['name']} {dataset['configuration']}"
        sheet.attempt(title, partial(beside_the_loader, dataset, device, *steps), 0 if dry else 15)
    for case in cases[1:]:
        sheet.attempt(f"profile, {case.title}", partial(profiled, case, "stacked", device, 3), 10)


if __name__ == "__main__":
    main()
