"""``benchmarks/step.py``: behaviour at the memory limit, and kinds of operations in its profile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import step
import step_shares
from step_ways import EXTRA_WAYS, WAYS, BenchmarkCase


def test_batch_sizes_grow_until_memory_is_exhausted(monkeypatch, capsys):
    def run_step(bench, way):
        if bench.case.batch * (6 if way == "stacked" else 1) > 12:
            raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(step.StepBenchmark, "run_step", run_step)
    monkeypatch.setattr(step, "count_flops", lambda case, ways: dict.fromkeys(ways, 1e9))
    monkeypatch.setattr(step, "measure_peak_memory", lambda bench, way: 2**20)
    cases = [BenchmarkCase("2d", (8, 8), batch, (2, 4)) for batch in (2, 8, 16, 32)]
    args = argparse.Namespace(amp=False, compile=False, ways=["stacked"], more=False, repeats=1, profile=False)
    results = dict(step.measure_cases(cases, args, torch.device("cpu")))
    assert {title: list(rows) for title, rows in results.items()} == {
        "2d, batch 2": ["supervised", "stacked"],
        "2d, batch 8": ["supervised"],
    }
    told = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert told == [
        "2d, batch 8: out of memory: stacked",
        "2d, batch 16: out of memory: supervised",
        "2d, batch 16: out of memory: stacked",
    ]


def test_only_requested_ways_are_measured():
    every = argparse.Namespace(ways=None, more=True, compile=False)
    named = argparse.Namespace(ways=["stacked_half", "released"], more=True, compile=False)
    assert step.selected_ways(every) == (*WAYS, *EXTRA_WAYS)
    assert step.selected_ways(named) == ("supervised", "released", "stacked_half")


def test_the_released_schedule_is_skipped_with_a_compiled_network():
    assert "released" not in step.selected_ways(argparse.Namespace(ways=None, more=False, compile=True))


@pytest.mark.parametrize("way", [*WAYS, *EXTRA_WAYS])
def test_every_way_updates_the_weights(way):
    bench = step.StepBenchmark(BenchmarkCase("2d", (16, 16), 2, (2, 4)), torch.device("cpu"), False, False)
    before = [p.detach().clone() for p in bench.uncompiled_network.parameters()]
    bench.run_step(way)
    moved = [p for p, old in zip(bench.uncompiled_network.parameters(), before, strict=True) if not torch.equal(p, old)]
    assert len(moved) > len(before) / 2
    assert all(p.isfinite().all() for p in moved)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "matrix work"),
        ("aten::convolution_backward", "matrix work"),
        ("aten::mm", "matrix work"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "matrix work"),
        ("aten::native_batch_norm_backward", "normalization"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512, true, 1, true>", "normalization"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>", "copies"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("triton_poi_fused_convolution_leaky_relu_3", "fused"),
        ("aten::leaky_relu_", "rest"),
        ("aten::max_pool2d", "rest"),
    ],
)
def test_operations_are_assigned_to_their_kind(name, kind):
    assert step_shares.operation_kind(name) == kind


def test_shares_of_a_product_of_matrices():
    a = torch.randn(600, 600)
    shares = step_shares.measure_time_shares(lambda: a @ a, torch.device("cpu"))
    assert next(iter(shares)) == "matrix work"
    assert sum(shares.values()) == pytest.approx(1)
