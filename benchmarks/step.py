"""Cost of one training step: supervised, CrossMatch stacked and sequential, and the authors' released schedule.

    python benchmarks/step.py [--small] [--more] [--profile] [--plans nnUNetPlans.json -c 3d_fullres] [--json out.json]
    python benchmarks/step.py --batch 2 4 8 16 32 64
    python benchmarks/step.py --flops

FLOPs are counted by torch on fake tensors, so ``--flops`` takes seconds for any size. Times are medians of interleaved
steps in one process; ratios are medians over rounds with one step of each way. Peak memory is that of CUDA's allocator,
or on a CPU the growth of the resident set in a new process (Linux). A way that exhausts the GPU memory is printed and
skipped; with ``--batch``, larger batches are skipped too if not even the supervised step fits. Forward, backward,
clipping and SGD step are timed, data loading is not. On a CPU set MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=60000000000, or page faults of large tensors double the time.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from new_process import growth_of_memory, run_for_memory
from step_shares import measure_time_shares
from step_ways import EXTRA_WAYS, GENERIC, SMALL, WAYS, BenchmarkCase, StepBenchmark, case_from_plans
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_crossmatch.learning.memory import fits_in_memory

FLOP_STEPS = 12  # steps over which the FLOPs of drawn students are averaged


def count_flops(case: BenchmarkCase, ways: Sequence[str]) -> dict[str, float]:
    """Floating-point operations of a step of each way, on fake tensors; a mean over steps for drawn students."""
    with FakeTensorMode():
        bench = StepBenchmark(case, torch.device("cpu"), False, False)
        return {way: count_flops_of_way(bench, way) for way in ways}


def count_flops_of_way(bench: StepBenchmark, way: str) -> float:
    steps = FLOP_STEPS if "students" in way else 1
    with FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            bench.run_step(way)
    return counter.get_total_flops() / steps


def measure_seconds(step: Callable[[], None], device: torch.device) -> float:
    """Wall time of ``step``; on a GPU between two CUDA events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start_time = time.perf_counter()
    step()
    return time.perf_counter() - start_time


def measure_resident_growth(case: BenchmarkCase, way: str) -> int:
    """Peak resident memory of two steps minus that of the network, in bytes; must run in a new process."""
    bench = StepBenchmark(case, torch.device("cpu"), False, False)
    return growth_of_memory(partial(bench.run_step, way), bench.device, 2)


def measure_peak_memory(bench: StepBenchmark, way: str) -> int:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        bench.run_step(way)
        return torch.cuda.max_memory_allocated()
    return run_for_memory(measure_resident_growth, bench.case, way)


def selected_ways(args: argparse.Namespace) -> tuple[str, ...]:
    chosen = {"supervised", *(args.ways or (*WAYS, *(EXTRA_WAYS if args.more else ())))}
    left_out = {"released"} if args.compile else set()  # calls encoder and decoder, which are not compiled
    return tuple(way for way in (*WAYS, *EXTRA_WAYS) if way in chosen - left_out)


def fits_in_gpu_memory(bench: StepBenchmark, way: str) -> bool:
    """Run a step, also as warm-up; prints the way and returns False if it exhausts the GPU memory."""
    enough = fits_in_memory(partial(bench.run_step, way), bench.uncompiled_network)
    if not enough:
        print(f"{bench.case.title}: out of memory: {way}", flush=True)
    return enough


def measure_ways(bench: StepBenchmark, ways: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """Measurements of each way, in the order of ``ways``; ratios refer to the first one."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            times[way].append(measure_seconds(partial(bench.run_step, way), bench.device))
    operations = count_flops(bench.case, ways)
    return {
        way: {
            "gflop": operations[way] / 1e9,
            "ms": statistics.median(times[way]) * 1000,
            "ms_min": min(times[way]) * 1000,
            "ms_max": max(times[way]) * 1000,
            "time_ratio": statistics.median(t / base for t, base in zip(times[way], times[ways[0]], strict=True)),
            "peak_mib": measure_peak_memory(bench, way) / 2**20,
        }
        for way in ways
    }


def measure_cases(
    cases: Sequence[BenchmarkCase], args: argparse.Namespace, device: torch.device
) -> Iterator[tuple[str, dict]]:
    """Measure, print and yield every case; skips larger batches once the supervised step does not fit."""
    exhausted = set()
    for case in cases:
        rows = None if case.name in exhausted else measure_case(case, args, device)
        gc.collect()
        torch.cuda.empty_cache()
        if rows is None:
            exhausted.add(case.name)
        else:
            yield case.title, rows


def measure_case(case: BenchmarkCase, args: argparse.Namespace, device: torch.device) -> dict[str, dict] | None:
    """Measurements of one case; None if the supervised step does not fit into memory."""
    bench = StepBenchmark(case, device, args.amp, args.compile)
    ways = [way for way in selected_ways(args) if fits_in_gpu_memory(bench, way)]
    if "supervised" not in ways:
        return None
    rows = measure_ways(bench, ways, args.repeats)
    print(f"\n{format_table(case, rows)}", flush=True)
    for way in ways if args.profile else ():
        rows[way]["shares"] = measure_time_shares(partial(bench.run_step, way), device)
        print(format_shares(way, rows[way]["shares"]), flush=True)
    return rows


def format_shares(way: str, shares: dict[str, float]) -> str:
    return f"{way:20} time: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())


def format_flops(case: BenchmarkCase, ways: Sequence[str]) -> str:
    """Format the FLOPs of a step of each way."""
    numbers = count_flops(case, ways)
    rows = [f"{way:20}{n / 1e9:12.1f} GFLOP{n / numbers['supervised']:7.2f}" for way, n in numbers.items()]
    return "\n".join([case.title, *rows])


def format_table(case: BenchmarkCase, rows: dict[str, dict[str, float]]) -> str:
    base = rows["supervised"]
    lines = [
        case.title,
        f"{'':20}{'GFLOP':>10}{'ratio':>7}{'ms':>10}{'min':>9}{'max':>9}{'ratio':>7}{'t/F':>6}{'MiB':>9}{'ratio':>7}",
    ]
    for way, row in rows.items():
        flop_ratio, time_ratio = row["gflop"] / base["gflop"], row["time_ratio"]
        lines.append(
            f"{way:20}{row['gflop']:10.1f}{flop_ratio:7.2f}{row['ms']:10.1f}{row['ms_min']:9.1f}{row['ms_max']:9.1f}"
            f"{time_ratio:7.2f}{time_ratio / flop_ratio:6.2f}{row['peak_mib']:9.0f}"
            f"{row['peak_mib'] / base['peak_mib']:7.2f}"
        )
    if {"released", "stacked"} <= rows.keys():
        faster = rows["released"]["time_ratio"] / rows["stacked"]["time_ratio"]
        lines.append(f"stacked is {faster:.2f} times faster than the released schedule")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes for 2 CPU cores")
    parser.add_argument(
        "--more", action="store_true", help="also recompute1, students1 to 3, half the unlabeled samples"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=(*WAYS, *EXTRA_WAYS), help="only these, beside the supervised step"
    )
    parser.add_argument("--plans", help="plans file to take network, patch and batch from")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="its configuration")
    parser.add_argument("--batch", nargs="+", type=int, help="labeled batch sizes, in growing order")
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    parser.add_argument("--flops", action="store_true", help="count only")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps each way (default: %(default)s)")
    parser.add_argument("--amp", action="store_true", help="mixed precision (GPU)")
    parser.add_argument("--compile", action="store_true", help="torch.compile; without the released schedule")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [case_from_plans(args.plans, args.configuration)] if args.plans else SMALL if args.small else GENERIC
    cases = [replace(case, batch=batch) for case in cases for batch in args.batch or [case.batch]]
    if args.flops:
        print("\n\n".join(format_flops(case, selected_ways(args)) for case in cases))
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, amp {args.amp}, compile {args.compile}")
    results = dict(measure_cases(cases, args, device))
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "steps": results}, indent=2))


if __name__ == "__main__":
    main()
