"""Mixed precision as far as a CPU shows it: errors of the whole gradient, and steps that a gradient scaler skips."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from small import gradient, host_network, random_step, run_step, supervised_loss, unsupervised_loss
from trainers import started, weights_of

from nnunetv2_crossmatch.learning.losses import Criterion
from nnunetv2_crossmatch.learning.network import EncoderDecoder

NAME = "nnUNetTrainerCrossMatch_2epochs_iters9_valiters1_seed1_warmup0_execstacked_ema0p9"


def relative_errors(dimensions: int, dtype: torch.dtype, scale: float = 1.0) -> dict[str, float]:
    """Of the gradient by autocast, as the trainer sets it, against float32: the host's step and both executions.

    tau 0: a voxel at the threshold would count in one of them.
    """
    torch.manual_seed(0)
    network = EncoderDecoder(host_network(dimensions, 3))
    step = random_step(network, 2, 2).to("cpu")
    autocast = partial(torch.autocast, "cpu", dtype=dtype, cache_enabled=False)
    found: dict[tuple[str, bool], torch.Tensor] = {}
    for reduced in (False, True):
        options = {"autocast": autocast} if reduced else {}
        for way in ("supervised", "stacked", "sequential"):
            network.zero_grad()
            if way == "supervised":
                with autocast(enabled=reduced):
                    loss = supervised_loss(network(step.images["labeled"]))
                (scale * loss).backward()
            else:
                loss = unsupervised_loss(step, Criterion(False, (0, 1, 2)), 0.0)
                run_step(network, step, way, loss, scale=lambda value: scale * value, **options)
            found[way, reduced] = gradient(network).clone() / scale
    exact = {way: found[way, False] for way in ("supervised", "stacked", "sequential")}
    return {way: float((found[way, True] - right).norm() / right.norm()) for way, right in exact.items()}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_bfloat16_costs_a_step_no_more_than_the_hosts_own(dimensions):
    errors = relative_errors(dimensions, torch.bfloat16)
    assert 0 < errors["stacked"] < 1.5 * errors["supervised"]
    assert 0 < errors["sequential"] < 1.5 * errors["supervised"]


@pytest.mark.parametrize("scale", [1024.0, 16384.0])
def test_sums_of_streams_in_float16_lose_no_more_than_the_stacked_ones(scale):
    """Both executions add up the gradients of the streams in the type of the features."""
    errors = relative_errors(2, torch.float16, scale)
    assert 0 < errors["sequential"] < 1.1 * errors["stacked"]


def test_float16_overflows_at_the_same_scale_in_both_executions_and_in_the_hosts_step():
    assert all(error != error for error in relative_errors(2, torch.float16, 65536.0).values())


def test_a_step_that_overflows_is_skipped_and_the_run_goes_on(prepared_copy):
    """The moving average stays, too; the step counts, since the loader has moved on."""
    trainer = started(prepared_copy, NAME)
    trainer.grad_scaler = torch.GradScaler("cpu", init_scale=8.0)
    batch = next(trainer.dataloader_train)
    trainer.train_step(copy.deepcopy(batch))
    before, average = weights_of(trainer), copy.deepcopy(trainer.method.average.state_dict())
    overflowing, own = copy.deepcopy(batch), trainer.grad_scaler.scale
    trainer.grad_scaler.scale = lambda loss: own(loss) * float("inf")
    trainer.train_step(overflowing)
    del trainer.grad_scaler.scale
    assert torch.equal(weights_of(trainer), before)
    assert all(torch.equal(average[key], value) for key, value in trainer.method.average.state_dict().items())
    assert (trainer.steps_done, trainer.grad_scaler.get_scale()) == (2, 4.0)
    trainer.train_step(copy.deepcopy(batch))
    assert not torch.equal(weights_of(trainer), before)
    assert weights_of(trainer).isfinite().all()
    assert trainer.main_stepped
