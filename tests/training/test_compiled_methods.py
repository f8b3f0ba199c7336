"""A compiled training of every method: the same weights after a step, and soon no more graphs.

In later steps DTC, whose distances are steep, makes rounding errors 30 times as large each time. With the compiler's
front end; with ``TEST_COMPILER=inductor`` also its code generator, which takes a minute a method.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from trainers import flat, started, steps

from nnunetv2_crossmatch.methods.names import METHODS
from nnunetv2_crossmatch.training.trainer import nnUNetTrainerSemiSupervised

ASKED = os.environ.get("TEST_COMPILER")
BACKEND = ASKED if ASKED == "inductor" else "eager"
pytestmark = pytest.mark.skipif(not ASKED, reason="minutes: needs TEST_COMPILER=1 (make test-compiler)")
TOKENS = {"UAMT": "_samples2", "BCP": "_pretrain0"}
STEPS, STARTED = 5, 3


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Compiles what ``nnUNet_compile`` would on a GPU."""
    torch._dynamo.reset()
    counting = CompileCounterWithBackend(BACKEND)
    whole: Any = torch.compile
    monkeypatch.setattr(torch, "compile", partial(whole, backend=counting))
    with torch._dynamo.config.patch({}):
        yield counting
    torch._dynamo.reset()


def trained(tiny: Any, name: str, counter: CompileCounterWithBackend) -> tuple[torch.Tensor, list[int]]:
    """All weights after the first step in a folder of its own, and the graphs that there were after each step."""
    trainer, weights, graphs = started(tiny, name), [], []
    for _ in range(STEPS):
        steps(trainer, 1)
        own = [flat(trainer.method)] if trainer.method.state_dict() else []
        weights.append(torch.cat([flat(trainer.network), *own]))
        graphs.append(counter.frame_count)
    shutil.rmtree(trainer.folder)
    return weights[0], graphs


@pytest.mark.parametrize("method", [method.__name__ for method in METHODS])
def test_a_compiled_training_equals_an_eager_one_and_soon_compiles_no_more(prepared_copy, monkeypatch, counter, method):
    name = f"nnUNetTrainer{method}_2epochs_iters{STEPS}_valiters1_seed1_warmup0{TOKENS.get(method, '')}"
    eager, graphs = trained(prepared_copy, name, counter)
    assert graphs[-1] == 0
    monkeypatch.setattr(nnUNetTrainerSemiSupervised, "_do_i_compile", lambda self: True)
    weights, graphs = trained(prepared_copy, name, counter)
    assert 0 < graphs[STARTED - 1] == graphs[-1]
    assert torch.allclose(weights, eager, rtol=1e-4, atol=1e-5)
