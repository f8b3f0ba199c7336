"""torch.compile: how many graphs a run makes, with the compiler's front end, and the code generator's results.

``eager`` as backend traces and runs what was traced. Inductor on the CPU needs a C++ compiler (Debian: g++).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small import gradient, host_network, random_step, run_step, unsupervised_loss
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from nnunetv2_crossmatch.learning import losses
from nnunetv2_crossmatch.learning.losses import Criterion
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.methods.crossmatch import loss_table
from nnunetv2_crossmatch.training.requirements import COMPILED_VARIANTS, prepare_compiler

ASKED = "TEST_COMPILER"
NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None or not os.environ.get(ASKED),
    reason=f"minutes: needs g++ and {ASKED}=1 (make test-compiler)",
)
LABELED, UNLABELED = 2, 3  # not equal, so that a batch size that became a symbol would show
CLASSES = (0, 1, 2)


@pytest.fixture(autouse=True)
def _prepared() -> Iterator[None]:
    torch._dynamo.reset()
    losses._compiled.cache_clear()
    with torch._dynamo.config.patch({}):
        prepare_compiler()
        yield
    torch._dynamo.reset()


def counted(network: nn.Module, way: str, count: int | None = None, steps: int = 10) -> tuple[list[int], float]:
    """Graphs that there are after each of ``steps`` steps, and the largest difference of a gradient from eager's."""
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, backend=counter)
    graphs, differences, rng = [], [0.0], np.random.default_rng(0)
    for seed in range(steps):
        step = random_step(network, LABELED, UNLABELED, seed).to("cpu")
        table = loss_table(0.3).drawn(count or 6, rng)
        results = []
        for net in (compiled, network) if seed in (0, steps - 1) else (compiled,):
            network.zero_grad()
            run_step(net, step, way, unsupervised_loss(step, Criterion(False, CLASSES), 0.5, table))
            results.append(gradient(network).clone())
        differences.append(float((results[0] - results[-1]).norm()))
        graphs.append(counter.frame_count)
    return graphs, max(differences)


def network_for(dimensions: int = 2, deep_supervision: bool = True) -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(host_network(dimensions, len(CLASSES), deep_supervision=deep_supervision))


def test_a_stacked_step_is_one_graph_whatever_is_drawn():
    assert counted(network_for(), "stacked") == ([1] * 10, 0.0)


def test_a_sequential_step_compiles_each_way_through_the_network_once():
    """Labeled images; views encoded; decoded by the teacher, by students without and with a perturbation."""
    assert counted(network_for(), "sequential") == ([5] * 10, 0.0)


def test_drawn_students_share_graphs_by_their_number_of_rows():
    """Encoded with one, two or three views, decoded by teacher and students: not one for each set of them."""
    graphs, difference = counted(network_for(), "stacked", 2, steps=16)
    assert graphs[-1] <= 5
    assert difference == 0


def test_a_forward_without_gradient_does_not_break_the_graph_of_a_stacked_step():
    network, step = network_for(), random_step(network_for(), LABELED, UNLABELED).to("cpu")
    table = loss_table(0.3)
    roles = {"views": table.views, "teachers": table.teachers, "students": table.students}
    explained = torch._dynamo.explain(network)(step.images, mode="stacked", drawn=step.drawn, **roles)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_every_set_of_students_is_a_variant_of_its_own_with_sizes_that_stay_numbers():
    assert torch._dynamo.config.automatic_dynamic_shapes is False
    assert torch._dynamo.config.cache_size_limit == COMPILED_VARIANTS > 8  # more than torch's own


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_seed_asks_for_code_that_is_not_chosen_by_timing(repeatable):
    config = pytest.importorskip("torch._inductor.config")
    prepare_compiler(deterministic=repeatable)
    assert getattr(config, "deterministic", repeatable) is repeatable
    prepare_compiler()


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("way", "dimensions", "deep_supervision", "count", "tolerance"),
    [
        ("stacked", 2, True, 6, 1e-4),
        ("stacked", 3, False, 2, 1e-4),
        ("sequential", 2, False, 6, 1e-4),
        ("stacked", 2, True, 6, 2e-2),
        ("sequential", 2, True, 6, 2e-2),
    ],
)
def test_generated_code_gives_the_loss_and_gradient_of_eager(way, dimensions, deep_supervision, count, tolerance):
    """With the compiled Dice, tau 0, since a voxel at the threshold may count in one of the two.

    In bfloat16 with the larger tolerance, as the trainer enters it: the whole gradient is 0.04 from that in float32.
    """
    reduced = partial(torch.autocast, "cpu", torch.bfloat16, tolerance > 1e-3, cache_enabled=False)
    network = network_for(dimensions, deep_supervision)
    compiled, rng = torch.compile(network), np.random.default_rng(1)
    step = random_step(network, LABELED, UNLABELED).to("cpu")
    table, values, gradients = loss_table(0.3).drawn(count, rng), [], []
    for net in (compiled, network):
        network.zero_grad()
        loss = unsupervised_loss(step, Criterion(False, CLASSES, compiled=net is compiled), 0.0, table)
        with reduced():
            supervised = run_step(net, step, way, loss)
        values.append(float(supervised + loss.total))
        learned = [p.grad for p in network.parameters() if p.grad is not None]  # not the lower heads without their loss
        gradients.append(torch.cat([each.flatten() for each in learned]))
    assert values[0] == pytest.approx(values[1], rel=tolerance)
    assert (gradients[0] - gradients[1]).norm() < tolerance * gradients[1].norm()


@pytest.mark.parametrize("regions", [False, True])
def test_the_sums_of_the_dice_are_one_graph_each_with_the_values_of_eager(regions):
    counter = CompileCounterWithBackend("eager")
    shape = (2, 3, 5, 5)
    probability = torch.rand(shape)
    labels = torch.rand(shape) > 0.5 if regions else torch.randint(0, 3, (2, 5, 5)).to(torch.uint8)
    arguments = probability, labels, torch.rand(labels.shape) > 0.3
    whole: Callable[..., Any] = torch.compile(losses.masked_sums, backend=counter, fullgraph=True)
    assert torch.equal(whole(*arguments, CLASSES), losses.masked_sums(*arguments, CLASSES))
    back: Callable[..., Any] = torch.compile(losses.gradient_of_sums, backend=counter, fullgraph=True)
    of_sums = torch.randn(3, 3)
    assert torch.equal(back(*arguments, of_sums, CLASSES), losses.gradient_of_sums(*arguments, of_sums, CLASSES))
    assert counter.frame_count == 2


def test_a_compiled_step_asks_for_compiled_sums(monkeypatch):
    asked = []
    monkeypatch.setattr(losses, "_compiled", lambda function: asked.append(function.__name__) or function)
    network = network_for()
    step = random_step(network, LABELED, UNLABELED).to("cpu")
    results = []
    for compiled in (True, False):
        network.zero_grad()
        run_step(network, step, "stacked", unsupervised_loss(step, Criterion(False, CLASSES, compiled=compiled)))
        results.append(copy.deepcopy(gradient(network)))
    assert set(asked) == {"masked_sums", "gradient_of_sums"}
    assert len(asked) == 2 * len(loss_table(0.3).rows)
    assert torch.equal(*results)
