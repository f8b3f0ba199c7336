"""What the trainer does for methods with modules and optimizers of their own, shown with the toy methods."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from toy_methods import MovingAverage, TwoNetworks, with_toys
from trainers import continued, flat, make_trainer, resumed, started, steps

from nnunetv2_crossmatch.errors import InputError, Problem, UnsupportedError
from nnunetv2_crossmatch.methods import names
from nnunetv2_crossmatch.training import trainer as trainer_module

LENGTH = "2epochs_iters3_valiters1_seed1_warmup0"
AVERAGE, TWO = f"nnUNetTrainerMovingAverage_{LENGTH}", f"nnUNetTrainerTwoNetworks_{LENGTH}"
TEACHER = f"nnUNetTrainerFixMatch_{LENGTH}_ema0p9"
LATER = f"nnUNetTrainerCrossMatch_{LENGTH}_labeledonly0p3_geometry1_labeledmix0p5_ema0p9_mirrorteacher1"  # from step 2


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "METHODS", with_toys())


def test_the_average_starts_at_weights_that_were_loaded_after_the_network_was_made(prepared_copy):
    trainer = started(prepared_copy, f"{AVERAGE}_alpha1")
    with torch.no_grad():
        for weight in trainer.network.parameters():
            weight += 1
    loaded = flat(trainer.network)
    steps(trainer, 2)
    assert torch.equal(flat(trainer.method.average), loaded)
    assert not torch.equal(flat(trainer.network), loaded)


def test_the_average_follows_the_network_as_a_loop_by_hand_says(prepared_copy):
    trainer = started(prepared_copy, AVERAGE)
    by_hand = flat(trainer.network).double()
    for _ in range(3):
        steps(trainer, 1)
        by_hand = 0.9 * by_hand + 0.1 * flat(trainer.network)
    assert torch.allclose(flat(trainer.method.average).double(), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [AVERAGE, TWO, TEACHER, LATER])
def test_a_continued_run_ends_with_the_weights_of_an_unbroken_one(prepared_copy, name):
    whole = started(prepared_copy, name)
    steps(whole, 1)
    whole.save_latest()
    steps(whole, 2)
    again = resumed(prepared_copy, name)
    steps(again, 2)
    assert torch.equal(flat(whole.network), flat(again.network))
    assert torch.equal(flat(whole.method), flat(again.method))


@pytest.mark.parametrize("name", [AVERAGE, TWO, TEACHER])
def test_stock_loads_the_weights_and_finds_nothing_of_the_method_among_them(prepared_copy, name):
    trainer = started(prepared_copy, name)
    trainer.save_latest()
    saved = torch.load(trainer.folder / "checkpoint_latest.pth", weights_only=False)
    stock = make_trainer(prepared_copy, "nnUNetTrainer")
    stock.initialize()
    stock.network.load_state_dict(saved["network_weights"], strict=True)
    assert saved["optimizer_state"]["param_groups"][0]["params"] == list(range(len(list(stock.network.parameters()))))
    assert saved["method_state"]["modules"].keys() == trainer.method.state_dict().keys()


def test_a_method_without_modules_adds_nothing_to_the_checkpoint(prepared_copy):
    trainer = started(prepared_copy, f"nnUNetTrainerFixMatch_{LENGTH}")
    trainer.save_latest()
    assert "method_state" not in torch.load(trainer.folder / "checkpoint_latest.pth", weights_only=False)


def test_a_checkpoint_without_the_methods_state_is_refused_with_the_way_out(prepared_copy):
    trainer = started(prepared_copy, AVERAGE)
    trainer.save_latest()
    file = trainer.folder / "checkpoint_latest.pth"
    saved = torch.load(file, weights_only=False)
    del saved["method_state"]
    torch.save(saved, file)
    with pytest.raises(InputError, match=r"checkpoint of another method in .*latest\.pth: it holds no state of Moving"):
        continued(prepared_copy, AVERAGE)


def test_a_checkpoint_with_an_average_that_is_not_finite_is_not_written(prepared_copy):
    trainer = started(prepared_copy, AVERAGE)
    next(trainer.method.average.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match=r"weights not finite.*method_state\.modules\.average"):
        trainer.save_latest()
    assert not (trainer.folder / "checkpoint_latest.pth").exists()


@pytest.mark.parametrize("name", [AVERAGE, TWO, TEACHER])
def test_a_step_that_the_scaler_skips_changes_nothing_of_the_method(prepared_copy, name):
    trainer = started(prepared_copy, name)
    steps(trainer, 1)
    before = flat(trainer.method)
    trainer.grad_scaler = torch.GradScaler("cpu", init_scale=float("inf"))
    steps(trainer, 1)
    assert torch.equal(flat(trainer.method), before)
    assert trainer.steps_done == 2
    trainer.grad_scaler = torch.GradScaler("cpu", init_scale=1.0)
    steps(trainer, 1)
    assert not torch.equal(flat(trainer.method), before)


def test_each_network_is_clipped_and_stepped_by_itself(prepared_copy):
    """The peer's gradient is thirty times as large; clipped together it would take the network's step away."""
    trainer = started(prepared_copy, TWO)
    batch = next(trainer.dataloader_train)
    method, network = copy.deepcopy(trainer.method), copy.deepcopy(trainer.network)
    step = trainer._step(batch)
    step.network = network
    step.backward(method.losses(step)["loss"])
    norms = [stepped_by_hand(each) for each in (network, method.peer)]
    trainer.train_step(batch)
    assert norms[1] > 12 > norms[0]
    for each, by_hand in ((trainer.network, network), (trainer.method.peer, method.peer)):
        assert torch.allclose(flat(each), flat(by_hand), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("learned", [0, 1, 2])
def test_without_a_gradient_of_its_own_a_method_is_not_stepped_in_several_processes(
    prepared_copy, monkeypatch, learned
):
    """Zeros are a gradient to an optimizer with momentum; they stand in only where a part of the method has one."""
    trainer = started(prepared_copy, TWO)
    own = list(trainer.method.peer.parameters())
    for parameter in own[:learned]:
        parameter.grad = torch.ones_like(parameter)
    averaged: list[torch.nn.Parameter] = []
    monkeypatch.setattr(trainer_module, "average_gradients", averaged.extend)
    trainer._average_gradients()
    assert [p for p in averaged if p.grad is not None] == (own if learned else [])
    assert sum(p.grad.sum().item() for p in own if p.grad is not None) == sum(p.numel() for p in own[:learned])


@torch.no_grad()
def stepped_by_hand(network: torch.nn.Module) -> float:
    """Take the first step of nnU-Net's SGD along the gradients in ``network``; returns their norm."""
    learning = [p for p in network.parameters() if p.grad is not None]
    norm = torch.cat([p.grad.flatten() for p in learning]).norm().item()
    for p in learning:
        direction = p.grad * min(1.0, 12 / norm) + 3e-5 * p
        p -= 0.01 * (1 + 0.99) * direction  # Nesterov's momentum
    return norm


def test_the_peer_follows_the_schedule_of_the_learning_rate(prepared_copy):
    trainer = started(prepared_copy, TWO)
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates[0] == rates[1] < 0.01


def test_a_method_that_cannot_train_says_so_before_anything_is_loaded(tiny_copy, monkeypatch):
    problem = Problem("regions not supported", "dataset.json", "one class per voxel is needed", "use CrossMatch")
    monkeypatch.setattr(TwoNetworks, "problems", classmethod(lambda *_: [problem]))
    monkeypatch.setattr(nnUNetTrainer, "__init__", lambda *_: pytest.fail("something is loaded"))
    with pytest.raises(UnsupportedError, match=r"regions not supported.*Fix: use CrossMatch"):
        make_trainer(tiny_copy, TWO)


@pytest.mark.parametrize(
    "tokens",
    ["joint1_execsequential", "keep0p5_joint1", "softlabels1_joint1", "tauend0p9_keep0p5", "absentskip_softlabels1"],
)
def test_settings_that_leave_nothing_for_each_other_are_refused(tiny_copy, tokens):
    name = f"nnUNetTrainerFixMatch_{LENGTH}_{tokens}"
    with pytest.raises(UnsupportedError, match=r"settings contradict each other.*Fix: leave one of them out"):
        make_trainer(tiny_copy, name)


def test_amounts_are_not_held_where_volumes_are_annotated_in_part(tiny_copy):
    file = tiny_copy.preprocessed / "dataset.json"
    description = json.loads(file.read_text())
    description["labels"]["ignore"] = 2
    file.write_text(json.dumps(description))
    with pytest.raises(UnsupportedError, match=r"setting without data.*align1 compares with whole volumes"):
        make_trainer(tiny_copy, f"nnUNetTrainerFixMatch_{LENGTH}_align1")


def test_curves_of_a_method_are_logged_under_its_names(prepared_copy):
    trainer = started(prepared_copy, AVERAGE)
    trainer.on_train_epoch_end(steps(trainer, 3))
    assert set(trainer.curves) == {"loss_sup", "loss_consistency"}
    assert MovingAverage.unlabeled_views == ("weak",)


def test_a_curve_is_nan_in_an_epoch_that_has_no_value_for_it(prepared_copy):
    """A method with phases has other losses in each of them; the host's logger wants one value per epoch and curve."""
    trainer = started(prepared_copy, AVERAGE)
    for epoch, means in enumerate([{"loss_first": 1.0}, {"loss_second": 2.0}]):
        trainer.current_epoch = epoch
        trainer._log_curves(means)
    nan = pytest.approx(math.nan, nan_ok=True)
    assert trainer.curves == {"loss_first": [1.0, nan], "loss_second": [nan, 2.0]}
