"""Stage b: time and peak memory of a step in every way, beside the rates that the device reaches at best.

Most valuable first: 3d before 2d, mixed precision before float32, eager before compiled, which takes a minute each.
Limit: random images of the sizes of the published experiments, no loader.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from step import measure_seconds
from step_ways import GENERIC, BenchmarkCase, StepBenchmark

from benchmarks.gpu_stages.sheet import Sheet, error_of, stage_arguments
from nnunetv2_crossmatch.training.requirements import missing_for_compiler

ROUNDS, DRY_ROUNDS = 9, 1
DRY = (BenchmarkCase("2d 16 x 16", (16, 16), 2, (2, 4)),)
MAIN = ("supervised", "stacked", "sequential", "released", "stacked_recompute", "stacked_students2")
COMPILED = ("supervised", "stacked", "sequential", "stacked_students2")
FEW = ("supervised", "stacked")
LEAST = {"eager": 5.0, "compiled": 40.0}
"""Seconds that must be left to begin with a mode."""


class Mode(NamedTuple):
    """How steps run: mixed precision, compiled, layout of the weights."""

    name: str
    amp: bool
    compiled: bool
    channels_last: bool
    ways: tuple[str, ...]


MODES = (
    Mode("amp", True, False, False, MAIN),
    Mode("amp compiled", True, True, False, COMPILED),
    Mode("amp channels_last", True, False, True, FEW),
    Mode("fp32", False, False, False, FEW),
    Mode("amp compiled channels_last", True, True, True, FEW),
)
DRY_MODES = (MODES[0], MODES[1]._replace(ways=FEW))


def device_rates(device: torch.device, dry: bool) -> dict[str, float]:
    """TFLOP/s of large products in each precision, and GB/s of a copy, bytes read and written counted."""
    size = 64 if dry else 8192
    rates = {}
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[f"{name} TFLOP/s"] = 2 * size**3 / best_seconds(partial(torch.mm, a, b), device) / 1e12
    source = torch.empty(size * size * 16, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    rates["GB/s"] = 2 * source.numel() / best_seconds(partial(target.copy_, source), device) / 1e9
    return rates


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 8) -> float:
    return min(measure_seconds(lambda: work(), device) for _ in range(repeats))


def facts(device: torch.device) -> dict[str, Any]:
    """The machine, as far as it matters here."""
    result = {"torch": torch.__version__, "cpus": os.cpu_count(), "no compiler": missing_for_compiler()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        result |= {
            "device": properties.name,
            "memory GiB": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32 in convolutions": torch.backends.cudnn.allow_tf32,
        }
    return {"device": "CPU", **result}


def measure_way(bench: StepBenchmark, way: str, rounds: int) -> dict[str, float | None]:
    """Median, fastest and slowest step in ms, the first one's seconds, peak memory in MiB."""
    step, on_gpu = partial(bench.run_step, way), bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
    first = measure_seconds(step, bench.device)  # compiles, and lets cuDNN choose
    step()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = [measure_seconds(step, bench.device) for _ in range(rounds)]
    memory = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    reserved = torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None
    return {
        "ms": 1000 * statistics.median(times), "ms_min": 1000 * min(times), "ms_max": 1000 * max(times),
        "first_s": first, "peak_mib": memory, "reserved_mib": reserved,
    }  # fmt: skip


def modes(cases: tuple[BenchmarkCase, ...], compiler: bool, dry: bool) -> Iterator[tuple[BenchmarkCase, Mode]]:
    for mode in DRY_MODES if dry else MODES:
        if compiler or not mode.compiled:
            yield from ((case, mode) for case in cases)


def measure_mode(sheet: Sheet, case: BenchmarkCase, mode: Mode, device: torch.device, dry: bool) -> None:
    """Every way of a mode as a result of its own; the network is made once."""
    title = f"{case.title}, {mode.name}"
    backend = "eager" if dry else "inductor"
    settings = (case, device, mode.amp, mode.compiled, backend, mode.channels_last)
    bench = sheet_value(sheet, title, lambda: StepBenchmark(*settings))
    if bench is None:
        return
    for way in mode.ways:
        least = LEAST["compiled" if mode.compiled and not dry else "eager"]
        rounds = DRY_ROUNDS if dry else ROUNDS
        sheet.attempt(f"{title}, {way}", partial(measure_way, bench, way, rounds), least)
        bench.uncompiled_network.zero_grad(set_to_none=True)


def sheet_value(sheet: Sheet, title: str, make: Callable[[], Any]) -> Any:
    """``make()``, or None with the error in the sheet."""
    try:
        return make()
    except Exception as error:
        return sheet.add(title, error_of(error))


def main() -> None:
    arguments = stage_arguments()
    sheet = Sheet(arguments.result, arguments.seconds)
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.dry else "cpu")
    if device.type == "cuda":
        torch.set_num_threads(1)  # as nnU-Net's training command
    sheet.attempt("machine", lambda: facts(device))
    sheet.attempt("rates", lambda: device_rates(device, arguments.dry))
    cases = DRY if arguments.dry else (GENERIC[2], GENERIC[0])
    compiler = arguments.dry or (device.type == "cuda" and not missing_for_compiler())
    for case, mode in modes(cases, compiler, arguments.dry):
        measure_mode(sheet, case, mode, device, arguments.dry)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
