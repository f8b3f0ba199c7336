"""FilterMatch: its step against a slow statement, and which unlabeled cases are drawn when."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from reference import heads_of, turned
from small import PATCH, gradient, host_network
from trainers import resumed, started, steps

from nnunetv2_crossmatch.errors import UnsupportedError
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.methods.filtermatch import FilterMatch
from nnunetv2_crossmatch.methods.names import settings_from_name
from nnunetv2_crossmatch.methods.table import TableMethod
from nnunetv2_crossmatch.training.step_log import StepLog

NAME = "nnUNetTrainerFilterMatch"
TASKS = {
    "one class 2d": Task(2, dimensions=2, spacing=(1.0, 1.0)),
    "two classes 3d": Task(3, dimensions=3, spacing=(3.0, 1.0, 1.0)),
    "regions 2d": Task(3, regions=True, dimensions=2, spacing=(1.0, 1.0)),
}

LOWER = (..., slice(1, None, 2), slice(1, None, 2))  # voxels of the lower head; the first axis of three is whole


def dice_and_cross_entropy(heads: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
    """A loss of every head in which each row, voxel and class of the target has a part."""
    total = 0
    for z, target in zip(heads, targets, strict=True):
        regions = target.shape[1] == z.shape[1]
        p = torch.sigmoid(z) if regions else torch.softmax(z, 1)
        y = target if regions else torch.cat([target == c for c in range(z.shape[1])], 1)
        total = total - (2 * (p * y).sum() / (p + y).sum()) - (y * torch.log(p)).mean()
    return total


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_step_equals_the_slow_statement(task):
    torch.manual_seed(1)
    method = FilterMatch(settings_from_name(NAME), task)
    network = EncoderDecoder(host_network(task.dimensions, task.channels)).double()
    shape = (3, 1, *PATCH[task.dimensions])
    images = {view: torch.randn(shape, dtype=torch.float64) for view in ("labeled", "weak", "strong1")}
    full = torch.randint(0, 2, (3, task.channels if task.regions else 1, *shape[2:]))
    step = Step(network, dict(images), [full, full[LOWER]], task, dice_and_cross_entropy, weight=0.0, seed=3)
    slow, orientations = copy.deepcopy(network), method.draw_orientations(copy.copy(step))["strong1"]
    values = method.backward(step)
    z = heads_of(slow, images["weak"], None)[0].detach()
    p = 1 / (1 + torch.exp(-z)) if task.regions else torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
    y = (p > 0.5).long() if task.regions else p.argmax(1, keepdim=True)
    y = turned(y, orientations)
    heads = [heads_of(slow, images["labeled"], None), heads_of(slow, turned(images["strong1"], orientations), None)]
    targets = [[full, full[LOWER]], [y, y[LOWER]]]
    total = dice_and_cross_entropy(
        *([torch.cat(scale) for scale in zip(*each, strict=True)] for each in (heads, targets))
    )
    total.backward()
    assert values["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    assert (gradient(network) - gradient(slow)).norm() < 1e-10 * gradient(slow).norm()
    assert any(each.flipped or each.turns for each in orientations)
    spread = -(p * torch.log(p + 1e-6) + ((1 - p) * torch.log(1 - p + 1e-6) if task.regions else 0))
    by_voxel = spread if task.regions else spread.sum(1)
    assert method.entropies.tolist() == pytest.approx([image.mean().item() for image in by_voxel])


def followed(entropies: dict[str, list[float]], tokens: str = "") -> FilterMatch:
    """A method that has seen these entropies of crops of each case, half of them in a step."""
    method = FilterMatch(settings_from_name(NAME + tokens), TASKS["one class 2d"])
    method.drawn_cases(list(entropies), 0.0)
    crops = [(case, value) for case, values in entropies.items() for value in values]
    for part in (crops[::2], crops[1::2]):
        method.entropies = torch.tensor([value for _, value in part])
        method.after_step(Step(None, {}, None, method.task, None, cases=[case for case, _ in part]))
    return method


def test_the_surest_share_of_the_cases_leaves_after_every_third():
    sure = {f"case{i}": [0.01 * i, 0.01 * i + 0.02, 0.01 * i + 0.04] for i in range(10)}
    sure["unseen"] = []
    method = followed(sure, "_filter0p2")
    assert method.drawn_cases(list(sure), 0.33) == list(sure)
    assert method.drawn_cases(list(sure), 1 / 3) == list(sure)[2:]  # the mean, not the least, and not who was unseen
    assert method.drawn_cases(list(sure), 0.5) == list(sure)[2:]
    assert method.seen.tolist() == [[0.0] * 11] * 2
    assert method.drawn_cases(list(sure), 2 / 3) == list(sure)[2:]  # nothing was seen since


def test_what_every_method_with_a_table_does_after_a_step_is_done(monkeypatch):
    """An average moves, thresholds follow."""
    steps = []
    monkeypatch.setattr(TableMethod, "after_step", lambda method, step: steps.append(step.cases))
    followed({"a": [0.1, 0.2], "b": [0.2]})
    assert steps == [["a", "b"], ["a"]]


def test_one_case_stays_whatever_the_share():
    method = followed({"a": [0.1], "b": [0.2]}, "_filter0p9")
    assert method.drawn_cases(["a", "b"], 0.4) == ["b"]
    assert followed({"a": [0.1]}, "_filter0p9").drawn_cases(["a"], 0.4) == ["a"]


def next_epoch(trainer: Any) -> None:
    trainer.current_epoch, trainer.steps = trainer.current_epoch + 1, StepLog()
    trainer.on_train_epoch_start()


def test_batches_hold_the_drawn_cases_only_in_a_continued_run_too(prepared_copy):
    """Four cases, of which one leaves after each third; saved where the second epoch begins."""
    name = f"{NAME}_3epochs_iters4_valiters1_seed1_filter0p25"
    whole, left = started(prepared_copy, name), []
    for epoch in range(3):
        if epoch:
            next_epoch(whole)
        if epoch == 1:
            left = list(whole.method.left)
            whole.save_latest()
        assert len(whole.method.left) == epoch
        batches = [next(whole.dataloader_train) for _ in range(4)]
        for batch in batches:
            whole.train_step(batch)
        drawn = {str(key) for batch in batches for key in batch.get("unlabeled_keys", ())}
        assert drawn
        assert not drawn & set(whole.method.left)
    again = resumed(prepared_copy, name)
    assert again.method.left == left
    steps(again, 4)
    next_epoch(again)
    steps(again, 4)
    assert again.method.decisions() == whole.method.decisions()
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), whole.network.parameters(), strict=True))


def test_streams_one_after_the_other_are_refused_where_the_batch_is_one():
    (problem,) = FilterMatch.problems(settings_from_name(f"{NAME}_execsequential"), TASKS["one class 2d"])
    assert "joint1 makes one batch" in problem.detail
    assert not FilterMatch.problems(settings_from_name(f"{NAME}_execsequential_joint0"), TASKS["one class 2d"])
    assert UnsupportedError(problem).args
