"""The trainer's own step, made from plans and found by name, against the slow statement of the method."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import drawn
import pytest
import reference
import torch
from conftest import TinyDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from trainers import make_trainer, started

from nnunetv2_crossmatch.training.step_log import StepLog

EPOCHS, ITERATIONS = 4, 2
NAME = f"nnUNetTrainerCrossMatch_{EPOCHS}epochs_iters{ITERATIONS}_valiters1"
PAPER = f"{NAME}_seed1_warmup0"
STACKED = f"{PAPER}_execstacked"  # without the trial of memory, whose garbage collection takes half a second
TOLERANCE = 1e-6  # relative; the drawn perturbations are float32, all else is float64
DEFAULTS = {
    "u": 0.5, "warmup": 0.0, "eta": 0.3, "tau": (0.85, 0.85), "classes": (1,), "absent": "count", "temperature": 1.0,
    "with_ce": False, "regions": False, "rates": (0.25, 0.75), "kind": "channel", "bottleneck_only": False,
    "optimizer": "sgd", "lr": 0.01, "ema": None, "joint": False,
    "keep": None, "align": False, "soft": False,
}  # fmt: skip


class Slow:
    """The same network as ``trainer``, which learns by the slow statement with the settings ``changed``."""

    def __init__(self, trainer: Any, **changed: Any) -> None:
        self.settings = DEFAULTS | changed
        self.network, self.steps = copy.deepcopy(trainer.network), trainer.current_epoch * ITERATIONS
        self.supervised = nnUNetTrainer._build_loss(trainer)
        self.average = None if self.settings["ema"] is None else copy.deepcopy(self.network)
        self.labels = reference.SlowLabels(*(self.settings[name] for name in ("regions", "keep", "align", "soft")))
        set_labeling(trainer.method.labeling, self.labels)
        self.shares = list(trainer.class_shares.values())
        self.optimizer = {"sgd": reference.Sgd, "adamw": reference.AdamW}[self.settings["optimizer"]]()
        self.rate = self.settings["lr"] * (1 - trainer.current_epoch / EPOCHS) ** 0.9

    def loss(self, batch: dict, draw: drawn.Draw) -> tuple[torch.Tensor, dict]:
        """L of the step and what it should report."""
        names = ("eta", "classes", "absent", "temperature", "with_ce", "regions")
        progress = self.steps / (EPOCHS * ITERATIONS)
        u = reference.ramped(0, self.settings["u"], self.settings["warmup"], progress)
        tau = reference.ramped(*self.settings["tau"], 1, progress)
        images = {"labeled": batch["data"]}
        for i, view in enumerate(("weak", "strong1", "strong2")):
            images[view] = batch["unlabeled"][:, i]
        regions, teacher = self.settings["regions"], None
        if self.average is not None or draw.flips:
            labeler = self.average or self.network
            teacher = reference.mean_over_flips(labeler, images["weak"], draw.flips or [()], regions)
        channels = len(self.network.decoder.seg_layers[-1].bias)
        if self.settings["joint"]:
            total = reference.joint_loss(
                self.network, images, draw.boxes, self.perturbations(draw), supervised=self.supervised,
                target=batch["target"], regions=regions, students=draw.students, orientations=draw.orientations,
                donors=draw.donors, references=true_labels(batch["target"][0], channels, regions),
                teacher=None if teacher is None else {"wn": teacher},
            )  # fmt: skip
            return total, {"loss": total.detach()}
        total, parts = reference.step_loss(
            self.network, images, draw.boxes, self.perturbations(draw), u=u, tau=tau, students=draw.students,
            supervised=lambda output: self.supervised(output, batch["target"]), orientations=draw.orientations,
            donors=draw.donors, references=true_labels(batch["target"][0], channels, regions), teacher=teacher,
            labels=self.labels,
            **{name: self.settings[name] for name in names},
        )  # fmt: skip
        self.followed = parts.pop("p_wn"), tau
        of_part = {f"loss_{part}": parts.pop(part).detach() for part in ("sup", "ip", "tkd", "dkd")}
        return total, {"loss": total.detach(), "unsup_weight": u, **of_part, **parts}

    def perturbations(self, draw: drawn.Draw) -> dict[str, list]:
        rates = dict(zip("ws", self.settings["rates"], strict=True))
        kind = self.settings["kind"]
        return {
            stream: [
                None if self.settings["bottleneck_only"] and i < 2 else reference.dropout(kept, rates[stream[1]], kind)
                for i, kept in enumerate(levels)
            ]
            for stream, levels in draw.kept.items()
        }

    def step(self, batch: dict, draw: drawn.Draw) -> dict:
        """Take one step; returns what it should report."""
        total, self.report = self.loss(batch, draw)
        parameters = list(self.network.parameters())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        self.gradients, self.norm = reference.clipped(gradients, 12), flat(gradients).norm().item()
        self.optimizer.step(parameters, self.gradients, self.rate)
        if self.average is not None:
            kept = self.settings["ema"]
            for slow, w in zip(self.average.parameters(), parameters, strict=True):
                slow.data = kept * slow.data + (1 - kept) * w.data
        if not self.settings["joint"]:
            self.labels.follow(*self.followed, self.shares)
        self.steps += 1
        return self.report


def set_labeling(labeling: Any, slow: reference.SlowLabels) -> None:
    """Thresholds, amounts and shifts of the middle of a run: those of its beginning hardly change a label."""
    if labeling.keep:
        insides = (False, True) if labeling.regions else (True,)
        kinds = [(c, inside) for inside in insides for c in range(labeling.channels)]
        slow.odds = {kind: 0.3 + 0.4 * i for i, kind in enumerate(kinds)}
        labeling.log_odds.copy_(torch.tensor(list(slow.odds.values())))
    if labeling.align:
        classes = range(0 if labeling.regions else 1, labeling.channels)
        slow.amount = {c: 3.0 / (1 + 20 * i) for i, c in enumerate(classes)}
        slow.shift = {c: 0.5 - i for i, c in enumerate(classes)}
        labeling.amount.copy_(torch.tensor(list(slow.amount.values())))
        labeling.shift.copy_(torch.tensor(list(slow.shift.values())))


def true_labels(target: torch.Tensor, channels: int, regions: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot labels and voxels that are not ignored, both (B, C, S), of a target as the host's loss takes it."""
    if regions:
        ignored = target[:, channels:].sum(1, keepdim=True) > 0
        return target[:, :channels] == 1, ~ignored.expand(-1, channels, *target.shape[2:])
    one_hot = torch.stack([target[:, 0] == c for c in range(channels)], 1)
    return one_hot, (target < channels).expand_as(one_hot)


def in_double(trainer: Any, epoch: int = 0) -> Any:
    """``trainer`` in float64 before ``epoch``, sure of some labels and unsure of others, with the host's loss."""
    trainer.network.double()
    trainer.method.double()
    with torch.no_grad():
        for name, p in trainer.network.named_parameters():
            if "seg_layers" in name:
                p.mul_(8)
                p[2:] = -10.0 if name.endswith("bias") else 0.0  # a third class is in no label
    trainer.method.start(trainer.network)
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()
    return trainer


def batch_of(trainer: Any) -> dict:
    batch = next(trainer.dataloader_train)
    return {**batch, "data": batch["data"].double(), "unlabeled": batch["unlabeled"].double()}


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors if t is not None])


def assert_alike(trainer: Any, slow: Slow, steps: int = 2) -> list[drawn.Draw]:
    """Reports, gradients and weights of the next steps equal the slow statement's; returns what was drawn."""
    draws, before = drawn.recorded(trainer), flat(trainer.network.parameters())
    for _ in range(steps):
        batch = batch_of(trainer)
        report = trainer.train_step(copy.deepcopy(batch))
        expected = slow.step(batch, draws[-1])
        report = {name: value for name, value in report.items() if not name.startswith("amount_")}
        if slow.settings["joint"]:
            report.pop("agreement")  # of no loss
        assert {name: float(value) for name, value in report.items()} == {
            name: pytest.approx(float(value), rel=TOLERANCE, abs=1e-12, nan_ok=True) for name, value in expected.items()
        }
        assert not [name for name, value in report.items() if getattr(value, "requires_grad", False)]
        gradients = [p.grad for p in trainer.network.parameters()]
        assert [g is None for g in gradients] == [g is None for g in slow.gradients]
        assert (flat(gradients) - flat(slow.gradients)).norm() < TOLERANCE * flat(slow.gradients).norm()
    moved = flat(slow.network.parameters()) - before
    assert (flat(trainer.network.parameters()) - before - moved).norm() < TOLERANCE * moved.norm()
    return draws


def small_cubes(tiny: TinyDataset) -> None:
    """3d patches of 8 voxels: a slow step in 3d takes tenths of a second instead of seconds."""
    plans = json.loads(tiny.plans_file.read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 8, 8]
    tiny.plans_file.write_text(json.dumps(plans))


@pytest.mark.parametrize("cutmix", ["", "_cutmix1"])
@pytest.mark.parametrize(
    ("configuration", "execution"),
    [("2d", "auto"), ("2d", "stacked"), ("2d", "sequential"), ("3d_fullres", "stacked"), ("3d_fullres", "sequential")],
)
def test_two_steps_equal_the_slow_statement(prepared_copy, configuration, execution, cutmix):
    small_cubes(prepared_copy)
    name = f"{PAPER}_exec{execution}{cutmix}_batch2_ubatch3"
    trainer = in_double(started(prepared_copy, name, configuration))
    slow = Slow(trainer)
    draws = assert_alike(trainer, slow)
    boxes = [box for draw in draws for view in draw.boxes.values() for box in view]
    assert (None in boxes) == (cutmix == "")
    assert any(boxes)
    assert 0.1 < slow.report["confident_share"] < 0.99
    assert slow.report["agreement"] < 0.99


TOKENS = {
    "lr0p05": {"lr": 0.05},
    "optadamw": {"optimizer": "adamw", "lr": 0.001},
    "optadamw_lr0p02": {"optimizer": "adamw", "lr": 0.02},
    "temp0p5": {"temperature": 0.5},
    "classesall": {"classes": (0, 1)},
    "criteriondicece": {"with_ce": True},
    "levelsbottleneck": {"bottleneck_only": True},
    "dropalpha": {"kind": "alpha"},
    "dropfeaturealpha": {"kind": "featurealpha"},
    "weak0p5": {"rates": (0.5, 0.75)},
    "strong0p4": {"rates": (0.25, 0.4)},
    "eta0p8": {"eta": 0.8},
    "tau0p6": {"tau": (0.6, 0.6)},
    "tau0p6_tauend0p9": {"tau": (0.6, 0.9)},
    "unsup2": {"u": 2.0},
    "students2": {},
    "students5": {},
    "cutmix0": {},
    "recompute1": {},
    "geometry1": {},
    "labeledmix1": {},
    "labeledmix0p5_geometry1": {},
    "ema0p6": {"ema": 0.6},
    "mirrorteacher1": {},
    "joint1": {"joint": True},
    "joint1_geometry1_labeledmix0p5_ema0p6": {"joint": True, "ema": 0.6},
    "keep0p3": {"keep": 0.3},
    "keep0p3_geometry1_labeledmix0p5_execsequential": {"keep": 0.3},
    "align1": {"align": True},
    "softlabels1": {"soft": True},
    "softlabels1_criteriondicece_labeledmix0p5_geometry1": {"soft": True, "with_ce": True},
    "keep0p3_align1_softlabels1_mirrorteacher1": {"keep": 0.3, "align": True, "soft": True},
    "ema0p6_mirrorteacher1_execsequential": {"ema": 0.6},
    "geometry1_labeledmix0p5_execsequential": {},
}


@pytest.mark.parametrize("token", TOKENS)
def test_every_setting_is_seen_in_the_step(prepared_copy, token):
    name = PAPER if "exec" in token else STACKED
    trainer = in_double(started(prepared_copy, f"{name}_{token}"), epoch=2)
    for draw in assert_alike(trainer, Slow(trainer, **TOKENS[token])):
        assert len(draw.students) == (int(token[8]) if "students" in token else 6)
        if token == "cutmix0":
            assert draw.boxes == {"strong1": [None, None], "strong2": [None, None]}


LABELS: dict[str, dict] = {
    "classes": {"labels": {"background": 0, "blob": 1, "other": 2}},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]},
}
SEVERAL = {
    "classes": {"classes": (0, 1, 2), "tau": (0.5, 0.5)},
    "classes_classesforeground": {"classes": (1, 2), "tau": (0.5, 0.5)},
    "classes_absentskip": {"classes": (0, 1, 2), "tau": (0.5, 0.5), "absent": "skip"},
    "regions_criteriondicece": {"classes": (0, 1), "tau": (0.5, 0.5), "regions": True, "with_ce": True},
    "regions_tau0p9": {"classes": (0, 1), "tau": (0.9, 0.9), "regions": True},
    "classes_geometry1_labeledmix0p5_mirrorteacher1": {"classes": (0, 1, 2), "tau": (0.5, 0.5)},
    "classes_keep0p3_align1_softlabels1_criteriondicece": {
        "classes": (0, 1, 2),
        "keep": 0.3,
        "align": True,
        "soft": True,
        "with_ce": True,
    },
    "regions_keep0p3_align1_softlabels1_criteriondicece": {
        "classes": (0, 1),
        "keep": 0.3,
        "align": True,
        "soft": True,
        "with_ce": True,
        "regions": True,
    },
    "classes_joint1_labeledmix0p5": {"joint": True},
    "regions_joint1_geometry1": {"joint": True, "regions": True},
    "regions_geometry1_labeledmix0p5_mirrorteacher1": {"classes": (0, 1), "tau": (0.5, 0.5), "regions": True},
}


def relabel(tiny: TinyDataset, kind: str, **more: int) -> None:
    """Other labels than those that lie in the files: enough for a step, which does not look for them."""
    file = tiny.preprocessed / "dataset.json"
    description = json.loads(file.read_text()) | LABELS[kind]
    description["labels"] = description["labels"] | more
    file.write_text(json.dumps(description))


@pytest.mark.parametrize("case", SEVERAL)
def test_several_classes_and_regions_equal_the_slow_statement(prepared_copy, case):
    kind, _, token = case.partition("_")
    relabel(prepared_copy, kind)
    trainer = in_double(started(prepared_copy, f"{STACKED}_{token}".rstrip("_")))
    assert_alike(trainer, Slow(trainer, **SEVERAL[case]))


@pytest.mark.parametrize(
    ("token", "epoch", "settings", "weight"),
    [
        ("", 1, {"warmup": 0.4}, 0.5 * 0.25 / 0.4),
        ("_warmup1", 2, {"warmup": 1.0}, 0.25),
        ("_warmup0p5_unsup0p8", 1, {"warmup": 0.5, "u": 0.8}, 0.4),
        ("_warmup0p5_unsup0p8", 3, {"warmup": 0.5, "u": 0.8}, 0.8),
    ],
)
def test_the_unsupervised_losses_weigh_what_the_warm_up_says(prepared_copy, token, epoch, settings, weight):
    trainer = in_double(started(prepared_copy, f"{NAME}_seed1_execstacked{token}"), epoch)
    slow = Slow(trainer, **settings)
    assert_alike(trainer, slow, steps=1)
    assert slow.report["unsup_weight"] == pytest.approx(weight)


def test_the_first_part_of_a_run_is_the_hosts_step_on_labeled_images(prepared_copy):
    """Weights of the supervised control to the bit; then the weight rises from 0, and an average starts there."""
    name = f"{NAME}_seed1_execstacked"
    mixed = started(prepared_copy, f"{name}_labeledonly0p4_warmup0p25_ema0p9")
    control = started(prepared_copy, f"{name}_unsup0")
    reports = []
    for step in range(6):
        for trainer in (mixed, control) if step % ITERATIONS == 0 else ():
            trainer.current_epoch, trainer.steps = step // ITERATIONS, StepLog()
            trainer.on_train_epoch_start()
        before = flat(mixed.network.parameters())
        assert torch.equal(before, flat(control.network.parameters())) == (step <= 4)
        batch = next(mixed.dataloader_train)
        assert ("unlabeled" in batch) == (step >= 4)
        reports.append(mixed.train_step(batch))
        control.train_step(next(control.dataloader_train))
        if step == 4:
            average = 0.9 * before + 0.1 * flat(mixed.network.parameters())
            assert torch.allclose(flat(mixed.method.average.parameters()), average)
    weights = [report.get("unsup_weight") for report in reports]
    assert weights == [None] * 4 + [pytest.approx(0.5 * 0.1 / 0.25), pytest.approx(0.5 * 0.225 / 0.25)]


@pytest.mark.parametrize("norm", [6, 24])
def test_a_gradient_of_norm_24_is_shortened_to_12_and_one_of_6_is_not(prepared_copy, norm):
    trainer = in_double(started(prepared_copy, f"{STACKED}_unsup0p001"))
    slow, host_loss = Slow(trainer, u=0.001), trainer.loss
    batch = batch_of(trainer)
    trainer.dataloader_train = itertools.repeat(batch)
    loss = host_loss(slow.network(batch["data"]), batch["target"])
    unscaled = flat(torch.autograd.grad(loss, list(slow.network.parameters()), allow_unused=True)).norm()
    trainer.loss = slow.supervised = lambda *arguments: norm / unscaled * host_loss(*arguments)
    assert_alike(trainer, slow, steps=1)
    assert slow.norm == pytest.approx(norm, rel=0.01)
    shortened = flat(p.grad for p in trainer.network.parameters()).norm().item()
    assert shortened == pytest.approx(min(slow.norm, 12), rel=TOLERANCE)


def test_a_gradient_scaler_is_taken_out_before_the_gradient_is_clipped(prepared_copy):
    trainer = in_double(started(prepared_copy, STACKED))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    assert_alike(trainer, Slow(trainer))
    assert trainer.grad_scaler.get_scale() == 4096


def drawn_in_two_steps(tiny: TinyDataset, seed: int) -> list[drawn.Draw]:
    trainer = started(tiny, f"{NAME}_seed{seed}_execstacked_cutmix1_ubatch4")
    draws = drawn.recorded(trainer)
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    return draws


def test_draws_follow_from_seed_and_step(prepared_copy):
    first, again, other = (drawn_in_two_steps(prepared_copy, seed) for seed in (1, 1, 2))
    assert [draw.values() for draw in first] == [draw.values() for draw in again]
    for two in ((first[0], first[1]), (first[0], other[0])):
        assert two[0].boxes != two[1].boxes
        assert all(not torch.equal(two[0].kept[name][0], two[1].kept[name][0]) for name in two[0].kept)


def test_views_streams_and_samples_have_draws_of_their_own(prepared_copy):
    (draw, _) = drawn_in_two_steps(prepared_copy, 1)
    boxes = [str(box) for view in draw.boxes.values() for box in view]
    assert len(boxes) == len(set(boxes)) == 8
    kept = [level[row].flatten().tolist() for levels in draw.kept.values() for level in levels[2:] for row in range(4)]
    assert len(kept) == len({tuple(row) for row in kept}) == 4 * 4


@pytest.mark.parametrize(("token", "calls"), [("execstacked", 1), ("execsequential", 4), ("execstacked_recompute1", 2)])
def test_the_encoder_runs_as_often_as_the_execution_says(prepared_copy, token, calls):
    trainer, seen = started(prepared_copy, f"{PAPER}_{token}"), []
    trainer.network.encoder.register_forward_pre_hook(lambda *_: seen.append(1))
    trainer.train_step(next(trainer.dataloader_train))
    assert len(seen) == calls


@pytest.mark.parametrize("kind", LABELS)
def test_ignored_voxels_never_enter_the_supervised_loss(prepared_copy, kind):
    """Of a whole step: what the logits of the labeled images get as gradient."""
    relabel(prepared_copy, kind, ignore=3)
    trainer, gradients = make_trainer(prepared_copy, STACKED), []
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    target = torch.randint(0, 2, (2, 3 if kind == "regions" else 1, 16, 16), dtype=torch.int16)
    target[:, -1, :8] = 1 if kind == "regions" else 3  # of regions the last channel marks the ignored voxels
    ignored = target[:, -1] == (1 if kind == "regions" else 3)
    images = torch.randn(2, 4, 1, 16, 16)
    batch = {"data": images[:, 0], "target": [target, target[..., ::2, ::2]], "unlabeled": images[:, 1:]}

    def keep(module, inputs, logits):
        if logits.requires_grad:
            logits.register_hook(gradients.append)

    trainer.network.decoder.seg_layers[-1].register_forward_hook(keep)
    trainer.train_step(batch)
    (gradient,) = gradients
    of_labeled = gradient[: len(target)].abs().sum(1)
    assert (of_labeled[ignored] == 0).all()
    assert (of_labeled[~ignored] > 0).any()
