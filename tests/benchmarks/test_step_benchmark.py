"""The step benchmark where memory ends, and the kinds of work that its profile tells apart."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import step
import step_shares
from step_ways import MORE, WAYS, Case


def test_batches_grow_until_the_memory_ends(monkeypatch, capsys):
    def take(bench, way):
        if bench.case.batch * (6 if way == "stacked" else 1) > 12:
            raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(step.Bench, "take", take)
    monkeypatch.setattr(step, "flops", lambda case, ways: dict.fromkeys(ways, 1e9))
    monkeypatch.setattr(step, "peak_memory", lambda bench, way: 2**20)
    cases = [Case("2d", (8, 8), batch, (2, 4)) for batch in (2, 8, 16, 32)]
    args = argparse.Namespace(amp=False, compile=False, ways=["stacked"], more=False, repeats=1, profile=False)
    results = dict(step.measured(cases, args, torch.device("cpu")))
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


def test_ways_that_are_named_come_alone():
    every = argparse.Namespace(ways=None, more=True, compile=False)
    named = argparse.Namespace(ways=["stacked_half", "released"], more=True, compile=False)
    assert step.ways_of(every) == (*WAYS, *MORE)
    assert step.ways_of(named) == ("supervised", "released", "stacked_half")


def test_the_released_schedule_is_not_compared_with_a_compiled_network():
    assert "released" not in step.ways_of(argparse.Namespace(ways=None, more=False, compile=True))


@pytest.mark.parametrize("way", [*WAYS, *MORE])
def test_every_way_moves_the_weights(way):
    bench = step.Bench(Case("2d", (16, 16), 2, (2, 4)), torch.device("cpu"), False, False)
    before = [p.detach().clone() for p in bench.bare.parameters()]
    bench.take(way)
    moved = [p for p, old in zip(bench.bare.parameters(), before, strict=True) if not torch.equal(p, old)]
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
def test_kinds_of_work(name, kind):
    assert step_shares.kind_of(name) == kind


def test_shares_of_a_product_of_matrices():
    a = torch.randn(600, 600)
    shares = step_shares.time_shares(lambda: a @ a, torch.device("cpu"))
    assert next(iter(shares)) == "matrix work"
    assert sum(shares.values()) == pytest.approx(1)
