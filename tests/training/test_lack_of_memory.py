"""Memory that runs out on purpose, at each stage of a step: what the run does, and that nothing else changes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from trainers import continued, make_trainer, started, weights_of

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.learning import execution
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.methods import table
from nnunetv2_crossmatch.methods.crossmatch import loss_table

NAME = "nnUNetTrainerCrossMatch_2epochs_iters3_valiters1_seed1_warmup0"
PLACES = {
    "encode": (EncoderDecoder, "encode", 1),
    "decode of the teacher": (EncoderDecoder, "decode", 1),
    "decode of the students": (EncoderDecoder, "decode", 2),
    "loss": (execution.UnsupervisedLoss, "of_student", 3),
    "backward": (Step, "backward", 1),
}
"""Where a stacked step runs out of memory: class, method, and the call of it that fails."""


def fail_once(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The method of ``place`` raises at that call of it, which is in the stacked step, and then never again."""
    owner, name, number = PLACES[place]
    own, calls = getattr(owner, name), itertools.count(1)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def steps(trainer: Any, batches: list[dict], before_last: Callable[[], None] = lambda: None) -> list[float]:
    """Losses of a step with each batch."""
    losses = []
    for number, batch in enumerate(batches):
        if number == len(batches) - 1:
            before_last()
        losses.append(float(trainer.train_step(copy.deepcopy(batch))["loss"]))
    return losses


@pytest.fixture
def batches(prepared_copy) -> list[dict]:
    trainer = started(prepared_copy, NAME)
    made = [next(trainer.dataloader_train) for _ in range(2)]
    trainer.lock.release()
    return made


@pytest.fixture
def sequential(prepared_copy, batches) -> tuple[list[float], torch.Tensor]:
    """Losses and weights of a run that was sequential from the beginning."""
    trainer = started(prepared_copy, f"{NAME}_execsequential")
    return steps(trainer, batches), weights_of(trainer)


@pytest.mark.parametrize("place", PLACES)
def test_a_first_step_without_memory_ends_sequential_with_the_same_weights(
    place, prepared_copy, batches, sequential, monkeypatch
):
    trainer = started(prepared_copy, NAME)
    fail_once(monkeypatch, place)
    assert steps(trainer, batches) == sequential[0]
    assert trainer.method.stacked is False
    assert torch.equal(weights_of(trainer), sequential[1])


@pytest.mark.parametrize("place", ["decode of the students", "backward"])
def test_a_later_step_without_memory_is_repeated_sequentially(place, prepared_copy, batches, monkeypatch, capsys):
    trainer, other = started(prepared_copy, NAME), started_beside(prepared_copy)
    other.method.stacked = True
    steps(trainer, batches, lambda: fail_once(monkeypatch, place))
    steps(other, batches[:1])
    other.method.stacked = False
    steps(other, batches[1:])
    assert trainer.method.stacked is False
    assert torch.equal(weights_of(trainer), weights_of(other))
    assert capsys.readouterr().out.count("run one after the other") == 1


def started_beside(tiny: Any) -> Any:
    """A trainer without a folder of its own, so that another one may hold the lock."""
    trainer = make_trainer(tiny, NAME)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.on_train_epoch_start = lambda: None
    return trainer


@pytest.mark.parametrize(
    ("owner", "method", "tokens"), [(EncoderDecoder, "encode", "_execsequential"), (torch.optim.SGD, "step", "")]
)
def test_where_no_other_execution_is_left_the_run_ends_with_the_remedy_and_whole_checkpoints(
    prepared_copy, monkeypatch, owner, method, tokens
):
    """The optimizer's step, which may have changed weights already, is not repeated."""
    name = f"nnUNetTrainerCrossMatch_2epochs_iters1_valiters1_seed1_warmup0{tokens}"
    trainer, own = make_trainer(prepared_copy, name), getattr(owner, method)

    def failing(*args: Any) -> Any:
        if trainer.current_epoch == 1:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return own(*args)

    monkeypatch.setattr(owner, method, failing)
    save = trainer.on_epoch_end
    monkeypatch.setattr(trainer, "on_epoch_end", lambda: (save(), trainer.save_latest()))
    with pytest.raises(InputError, match=r"out of GPU memory.*execsequential.*recompute1.*ubatch"):
        trainer.run_training()
    trainer.lock.release()
    monkeypatch.setattr(owner, method, own)
    again = continued(prepared_copy, name)
    assert again.current_epoch == 1
    assert all(p.isfinite().all() for p in again.network.parameters())


def test_the_execution_that_was_chosen_stays_when_the_run_is_continued(prepared_copy, batches, monkeypatch):
    first = started(prepared_copy, NAME)
    fail_once(monkeypatch, "encode")
    first.train_step(copy.deepcopy(batches[0]))
    first.save_latest()
    first.lock.release()
    second = make_trainer(prepared_copy, NAME, continuing=True)
    maybe_load_checkpoint(second, True, False)
    assert second.method.stacked is False


def test_a_checkpoint_without_a_choice_leaves_it_open(prepared_copy):
    first = started(prepared_copy, NAME)
    first.save_latest()
    first.lock.release()
    assert continued(prepared_copy, NAME).method.stacked is None


def test_memory_is_reserved_for_parameters_without_optimizer_state_only(prepared_copy, batches, monkeypatch):
    reserved, own = [], table.fits_in_memory

    def remember(step: Any, network: Any, stateless: Any) -> bool:
        reserved.append(len(list(stateless)))
        return own(step, network, stateless)

    monkeypatch.setattr(table, "fits_in_memory", remember)
    trainer = started(prepared_copy, NAME)
    steps(trainer, batches[:1])
    trainer.method.stacked = None
    steps(trainer, batches[1:])
    without_gradient = [p for p in trainer.network.parameters() if p.grad is None]  # of a head that has no weight
    assert reserved == [len(list(trainer.network.parameters())), len(without_gradient)]


@pytest.mark.parametrize(
    ("count", "students"),
    [(1, {"sw"}), (2, {"s1", "sw"}), (3, {"s1", "sw", "ww"}), (6, set(loss_table(0.3).students))],
)
def test_the_trial_is_of_the_students_with_most_views(count, students):
    dearest = loss_table(0.3).dearest(count)
    assert set(dearest.students) == students
    views = [len(loss_table(0.3).drawn(count, np.random.default_rng(n)).view_order) for n in range(30)]
    assert len(dearest.view_order) == max(views)


def test_the_trial_of_drawn_students_takes_the_dearest_set_and_changes_no_draw(prepared_copy, batches, monkeypatch):
    tried, own = [], table.run_stacked

    def remember(step: Any, drawn: Any, loss: Any) -> torch.Tensor:
        tried.append(set(loss.table.students))
        return own(step, drawn, loss)

    monkeypatch.setattr(table, "run_stacked", remember)
    trial, named = (started(prepared_copy, f"{NAME}_students2{tokens}") for tokens in ("", "_execstacked"))
    for trainer in (trial, named):
        steps(trainer, batches[:1])
    assert tried[0] == {"s1", "sw"}
    assert tried[1] == tried[2]
    assert torch.equal(weights_of(trial), weights_of(named))
