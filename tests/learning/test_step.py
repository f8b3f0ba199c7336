"""The whole step against its slow statement, stacked against sequential, and single mistakes that must show."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from small import gradient, host_network, random_step, run_step, supervised_loss, unsupervised_loss

from nnunetv2_crossmatch.learning.losses import Criterion, dice_classes
from nnunetv2_crossmatch.learning.memory import fits_in_memory
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import WEAK
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss
from nnunetv2_crossmatch.methods.crossmatch import STREAMS, loss_table

ETA, U = 0.3, 0.5
TABLE = loss_table(ETA)
ROLES = {"views": TABLE.views, "teachers": TABLE.teachers, "students": TABLE.students}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def run(network, step, execution, criterion, tau=0.5, weight=U, table=TABLE):
    loss = unsupervised_loss(step, criterion, tau, table)
    network.zero_grad()
    return loss.values(run_step(network, step, execution, loss, weight), weight)


def expected(network, step, criterion, tau=0.5, weight=U):
    network.zero_grad()
    total, parts = reference.step_loss(
        network, step.images, step.boxes, step.drawn, supervised=supervised_loss, u=weight, eta=ETA, tau=tau,
        classes=criterion.classes, regions=criterion.regions, absent=criterion.absent,
        temperature=criterion.temperature, with_ce=criterion.cross_entropy,
    )  # fmt: skip
    total.backward()
    return total.detach(), parts


def network_for(dimensions, channels, **kwargs):
    return EncoderDecoder(host_network(dimensions, channels, **kwargs)).double()


@pytest.mark.parametrize("execution", ["stacked", "sequential"])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_loss_gradient_and_optimizer_step_equal_the_slow_statement(execution, dimensions, regions, batch):
    network = network_for(dimensions, 3)
    criterion = Criterion(regions, dice_classes("auto", 3, regions))
    step = random_step(network, labeled=5 - batch, unlabeled=batch, seed=batch)
    slow = copy.deepcopy(network)
    report = run(network, step, execution, criterion)
    total, parts = expected(slow, step, criterion)
    assert report["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    for part in ("sup", "ip", "tkd", "dkd"):
        assert report[f"loss_{part}"].item() == pytest.approx(parts[part].item(), rel=1e-12), part
    difference = (gradient(network) - gradient(slow)).norm() / gradient(slow).norm()
    assert difference < 1e-10
    for each in (network, slow):
        torch.optim.SGD(each.parameters(), 0.1, momentum=0.9, nesterov=True).step()
    moved = zip(network.parameters(), slow.parameters(), strict=True)
    assert all(torch.allclose(fast, right, rtol=0, atol=1e-10) for fast, right in moved)


@pytest.mark.parametrize(
    "options",
    [{"absent": "skip"}, {"cross_entropy": True}, {"temperature": 0.5}, {"regions": True, "cross_entropy": True}],
)
def test_every_criterion_setting_equals_the_slow_statement(options):
    network = network_for(2, 3)
    criterion = Criterion(**{"regions": False, "classes": (0, 1, 2), **options})
    step = random_step(network, 2, 3)
    slow = copy.deepcopy(network)
    report = run(network, step, "stacked", criterion)
    total, _ = expected(slow, step, criterion)
    assert report["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    assert (gradient(network) - gradient(slow)).norm() / gradient(slow).norm() < 1e-10


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("kind", ["channel", "alpha", "featurealpha"])
@pytest.mark.parametrize("levels", ["all", "bottleneck"])
def test_stacked_and_sequential_give_the_same_gradient(residual, dimensions, kind, levels):
    network = EncoderDecoder(host_network(dimensions, 2, residual)).double()
    step = random_step(network, 2, 2, kind=kind, levels=levels)
    criterion = Criterion(False, (1,))
    reports = {
        name: run(network, step, name, criterion) | {"g": gradient(network)} for name in ("stacked", "sequential")
    }
    stacked, sequential = reports["stacked"], reports["sequential"]
    assert (stacked["g"] - sequential["g"]).norm() / stacked["g"].norm() < 1e-10
    assert stacked["loss"].item() == pytest.approx(sequential["loss"].item(), rel=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_each_stream_of_the_stacked_decode_equals_its_own_decode(dimensions):
    network = network_for(dimensions, 3)
    step = random_step(network, 3, 2)
    output = network(step.images, mode="stacked", drawn=step.drawn, **ROLES)
    assert output.streams.keys() == STREAMS.keys()
    for name, logits in output.streams.items():
        stream = STREAMS[name]
        features = network(step.images[stream.view], mode="encode")
        own = network(features, mode="decode", drawn=step.drawn.get(name))[0]
        assert torch.allclose(logits, own, rtol=0, atol=1e-12), name
    for head, own in zip(output.labeled, network(step.images["labeled"]), strict=True):
        assert torch.allclose(head, own, rtol=0, atol=1e-12)


def test_teacher_gets_no_gradient():
    network = network_for(2, 2)
    step = random_step(network, 2, 2)
    streams = network(step.images, mode="stacked", drawn=step.drawn, **ROLES).streams
    assert [name for name, logits in streams.items() if not logits.requires_grad] == ["wn"]


def test_teacher_keeps_no_graph_in_the_sequential_execution(monkeypatch):
    network, labelers = network_for(2, 2), {}
    add = UnsupervisedLoss.add_pseudo_labels

    def remember(self, stream, logits):
        labelers[stream] = logits.requires_grad
        add(self, stream, logits)

    monkeypatch.setattr(UnsupervisedLoss, "add_pseudo_labels", remember)
    run(network, random_step(network, 2, 2), "sequential", Criterion(False, (1,)))
    assert [stream for stream, with_gradient in labelers.items() if not with_gradient] == ["wn"]


def test_without_a_valid_voxel_only_the_supervised_loss_moves_the_network():
    network = network_for(2, 2)
    step = random_step(network, 2, 2)
    report = run(network, step, "stacked", Criterion(False, (1,)), tau=1.1)
    alone = gradient(network).clone()
    network.zero_grad()
    supervised_loss(network(step.images["labeled"])).backward()
    assert report["loss_ip"] == report["loss_tkd"] == report["loss_dkd"] == 0
    assert torch.allclose(alone, gradient(network), rtol=0, atol=1e-14)


def test_table_sums_to_the_weights_of_the_paper():
    share = {part: sum(r.weight * r.factor for r in TABLE.rows if r.part == part) for part in ("ip", "tkd", "dkd")}
    assert share == pytest.approx({"ip": 1, "tkd": 0.7, "dkd": 0.3})


@pytest.mark.parametrize("count", range(1, 6))
def test_a_subset_of_students_gives_the_same_gradient_stacked_and_sequential(count):
    network, criterion = network_for(2, 3), Criterion(False, (0, 1, 2))
    step, rng = random_step(network, 2, 2), np.random.default_rng(count)
    for _ in range(4):
        table = TABLE.drawn(count, rng)
        assert len(table.students) == count
        reports = {name: run(network, step, name, criterion, table=table)["loss"] for name in ("stacked",)}
        stacked = gradient(network)
        reports["sequential"] = run(network, step, "sequential", criterion, table=table)["loss"]
        assert (stacked - gradient(network)).norm() / stacked.norm() < 1e-10
        assert reports["stacked"].item() == pytest.approx(reports["sequential"].item(), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_mean_gradient_over_all_subsets_of_students_is_the_whole_one(count):
    """Unbiased: every subset once, as equally likely draws."""
    network, criterion = network_for(2, 2), Criterion(False, (1,))
    step = random_step(network, 2, 2)
    run(network, step, "stacked", criterion)
    whole, gradients = gradient(network).clone(), []
    for chosen in itertools.combinations(range(6), count):
        table = TABLE.drawn(count, SimpleNamespace(choice=lambda *_, chosen=chosen, **__: chosen))
        run(network, step, "stacked", criterion, table=table)
        gradients.append(gradient(network).clone())
    assert (torch.stack(gradients).mean(0) - whole).norm() / whole.norm() < 1e-10


def test_a_step_without_assistants_reports_all_values_on_the_device_of_the_logits():
    network, step = network_for(2, 2), random_step(network_for(2, 2), 2, 2)
    table = replace(TABLE, rows=tuple(row for row in TABLE.rows if row.student == "s1"))
    report = run(network, step, "stacked", Criterion(False, (1,)), table=table)
    assert {name for name, value in report.items() if not isinstance(value, torch.Tensor)} == {"unsup_weight"}
    assert report["loss_tkd"] == report["loss_dkd"] == 0
    assert report["agreement"].isnan()


def test_all_students_leave_the_table_as_it_is():
    assert TABLE.drawn(6, np.random.default_rng(0)) == TABLE


@pytest.mark.parametrize("execution", ["stacked", "sequential"])
@pytest.mark.parametrize("residual", [False, True])
def test_recomputed_activations_give_the_same_gradient(execution, residual):
    network = EncoderDecoder(host_network(2, 2, residual)).double()
    step, criterion = random_step(network, 2, 2), Criterion(False, (1,))
    run(network, step, execution, criterion)
    held, calls = gradient(network).clone(), []
    network.recompute = True
    network.encoder.stages[0].register_forward_hook(lambda *_: calls.append(1))
    run(network, step, execution, criterion)
    assert torch.allclose(gradient(network), held, rtol=0, atol=1e-14)
    assert len(calls) == {"stacked": 2, "sequential": 1 + 3 * 2}[execution]


def test_recomputed_activations_drop_the_same_features():
    """Plans may name a dropout."""
    network = EncoderDecoder(host_network(2, 2)).double()
    network.encoder.stages[0].append(torch.nn.Dropout(0.5))
    images = torch.rand(2, 1, 16, 16, dtype=torch.float64)

    def of_square() -> torch.Tensor:
        torch.manual_seed(0)
        network.zero_grad()
        network.decode(network.encode(images), labeled_rows=2)[0].square().sum().backward()
        return torch.cat([p.grad.flatten() for p in network.encoder.parameters()])

    held = of_square()
    network.recompute = True
    assert torch.allclose(of_square(), held, rtol=0, atol=1e-12 * held.abs().max())


def test_out_of_gpu_memory_is_told_and_leaves_no_gradient():
    network = network_for(2, 2)

    def exhausted():
        network(torch.ones(1, 1, 16, 16, dtype=torch.float64))[0].sum().backward()
        raise torch.cuda.OutOfMemoryError

    assert not fits_in_memory(exhausted, network)
    assert fits_in_memory(lambda: None, network)
    assert all(p.grad is None for p in network.parameters())


def test_other_errors_of_a_step_are_not_taken_for_lack_of_memory():
    def broken():
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        fits_in_memory(broken, network_for(2, 2))


IMAGES = {WEAK: torch.zeros(1)}


def first_draws(**changes):
    """The first number of each generator of a step of seed 1, index 3 and rank 0, with ``changes``."""
    return draws_of(replace(Step(None, IMAGES, None, Task(2), None, seed=1, index=3, rank=0), **changes))


def draws_of(step):
    return step.shared_rng.random(), step.rng.random(), torch.rand(1, generator=step.generator).item()


def test_draws_follow_from_seed_step_and_process_and_are_those_of_nothing_else():
    shared, own, on_device = first_draws()
    assert (shared, own, on_device) == first_draws()
    of_others = [first_draws(seed=2), first_draws(index=4), first_draws(rank=1)]
    assert [one[0] == shared for one in of_others] == [False, False, True]
    assert own not in [one[1] for one in of_others]
    assert on_device not in [one[2] for one in of_others]
    of_loaders_and_views = [np.random.default_rng((1, 0, kind, 3)).random() for kind in (0, 1, 4)]
    assert len({shared, own, *of_loaders_and_views}) == 5


def test_a_step_of_which_nothing_is_told_is_the_first_one_of_a_single_process():
    step = Step(None, IMAGES, None, Task(2), None)
    assert draws_of(step) == first_draws(seed=0, index=0, rank=0)
    assert (step.weight, step.progress, step.distributed) == (1.0, 0.0, False)


def test_a_step_without_exchange_has_the_losses_of_its_process_alone():
    options = {"weight": 1.0, "progress": 0.0, "index": 0, "seed": 0, "distributed": True}
    step = Step(None, {}, None, Task(2), max, local_supervised_loss=min, **options)
    alone = step.without_exchange()
    assert (alone.distributed, alone.supervised_loss) == (False, min)
    assert (step.distributed, step.supervised_loss) == (True, max)
