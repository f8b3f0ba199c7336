"""A train step reads nothing back from the device: boxes, masks, losses, logging; what is noticed is in ``waits``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from trainers import started
from waits import made_without_device, noticed_waits

from nnunetv2_crossmatch.learning import exchange
from nnunetv2_crossmatch.training import finite

NAME = "nnUNetTrainerCrossMatch_2epochs_iters9_valiters1_seed1_warmup0"
SCALER = SimpleNamespace(
    scale=lambda loss: loss, unscale_=lambda _: None, step=lambda optimizer: optimizer.step(), update=lambda: None
)
"""Of a scaler without its reading of one number for each optimizer, which the host's step has, too."""


def waits_of_a_step(trainer: Any, batches: list[dict]) -> list[str]:
    """What the second step reads back, or makes on another device; the first one decides on the execution."""
    trainer.grad_scaler = SCALER
    trainer.train_step(copy.deepcopy(batches[0]))
    with noticed_waits() as found, made_without_device() as elsewhere:
        trainer.train_step(batches[1])
    return found + elsewhere


@pytest.mark.parametrize(
    "tokens",
    [
        "_execstacked_cutmix1",
        "_execsequential_cutmix1",
        "_tau1",  # no voxel counts
        "_absentskip_criteriondicece_dropalpha_students2",
        "_ema0p9_mirrorteacher1_geometry1_labeledmix0p5",
        "_joint1",
    ],
)
def test_a_train_step_reads_nothing_back(tokens, prepared_copy):
    trainer = started(prepared_copy, f"{NAME}{tokens}")
    batches = [next(trainer.dataloader_train) for _ in range(2)]
    assert waits_of_a_step(trainer, batches) == []


def test_the_counters_of_values_that_are_not_finite_are_read_every_tenth_step():
    counter = finite.NonFiniteCounter(lambda line: None, False)
    reads = []
    for _ in range(20):
        with noticed_waits() as found:
            counter.count(torch.tensor(1.0), torch.tensor(1.0))
        reads.append(len(found) > 0)
    assert [number for number, read in enumerate(reads, 1) if read] == [10, 20]


@pytest.mark.parametrize("happened", [False, True])
def test_what_processes_tell_each_other_is_on_their_device(happened, monkeypatch):
    monkeypatch.setattr(exchange.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(exchange.dist, "all_reduce", lambda values, op: None)
    with made_without_device() as elsewhere:
        assert exchange.any_process(happened, torch.device("cpu")) == happened
    assert elsewhere == []


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1)[x > 1],
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: nn.functional.one_hot(x.long().clamp(min=0)).tolist(),
    ],
)
def test_what_reads_a_value_back_is_noticed(read):
    with noticed_waits() as found:
        read(torch.tensor([1.0]))
    assert found


@pytest.mark.parametrize("make", [torch.zeros, torch.rand, torch.arange, torch.tensor])
def test_what_is_made_without_naming_a_device_is_noticed(make):
    with made_without_device(__file__) as found:
        make(3)
        make(3, device="cpu")
        torch.zeros(1, device="cpu").new_tensor(3)
    assert found == [f"{Path(__file__).name}:{sys._getframe().f_lineno - 3} {make.__name__}"]
