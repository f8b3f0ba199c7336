"""The consistency methods: one step of each against its slow statement, and what they are made of by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slow_consistency import STATEMENTS, bcp_masks, bcp_parts
from small import PATCH, host_network, supervised_loss

from nnunetv2_crossmatch.errors import UnsupportedError
from nnunetv2_crossmatch.learning.consistency import gaussian_ramp, noisy, worst_direction
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.pseudo_labels import distribution
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.methods.consistency import ConsistencyMethod, ConsistencySettings
from nnunetv2_crossmatch.methods.names import METHODS, method_of, settings_from_name

U, PROGRESS = 0.7, 0.6
TASKS = {
    "one class 2d": Task(2, dimensions=2),
    "two classes 3d": Task(3, dimensions=3),
    "regions 2d": Task(3, regions=True, dimensions=2),
}
TOKENS = {"UAMT": "_samples3", "CAML": "_bank0p05"}  # BCP is in its second stage at PROGRESS


def network_of(task: Task) -> EncoderDecoder:
    """A network in float64 that is sure of some voxels."""
    network = EncoderDecoder(host_network(task.dimensions, task.channels)).double()
    with torch.no_grad():
        for layer in network.decoder.seg_layers:
            layer.weight.mul_(2)
    return network


def step_of(network: Any, task: Task, **options: Any) -> Step:
    shape = (3, 1, *PATCH[task.dimensions])
    images = {view: torch.randn(shape, dtype=torch.float64) for view in ("labeled", "weak")}
    target = torch.randint(
        0, 2 if task.regions else task.channels, (3, task.channels if task.regions else 1, *shape[2:])
    )
    return Step(network, images, target, task, supervised_loss, weight=U, progress=PROGRESS, index=5, seed=3, **options)


def made(name: str, task: Task) -> tuple[Any, Step]:
    """A method by its short name, ready for its first step, and a step; teachers are other networks already."""
    torch.manual_seed(1)
    trainer = f"nnUNetTrainer{name}{TOKENS.get(name, '')}"
    method = method_of(trainer)(settings_from_name(trainer), task)
    network = network_of(task)
    method.build(network, lambda: network_of(task))
    method.double()
    if name == "CAML":
        method.bank.rows.normal_()
        method.bank.filled[:, ::3] = 1
    return method, step_of(network, task)


def recorded(method: Any, step: Step) -> SimpleNamespace:
    """What the method will draw, in order, and what it sees."""
    seen = SimpleNamespace(
        images=dict(step.images), target=step.target, regions=step.task.regions, progress=PROGRESS, sure=0
    )
    names = {"noisy": "noisy", "draw_dropout": "dropouts", "draw_box": "boxes", "draw_directions": "directions"}
    for name, list_name in names.items():
        setattr(seen, list_name, [])
        if hasattr(method, name):
            setattr(method, name, remembering(getattr(method, name), getattr(seen, list_name)))
    return seen


def remembering(own: Any, results: list) -> Any:
    def draw(*arguments: Any) -> Any:
        results.append(own(*arguments))
        return results[-1]

    return draw


def gradients(*modules: Any) -> torch.Tensor:
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_step_equals_the_slow_statement(name, task):
    method, step = made(name, task)
    slow = copy.deepcopy((step.network, method))
    seen = recorded(method, step)
    values = method.backward(step)
    losses = STATEMENTS[name](*slow, seen)
    total = sum(loss for part, loss in losses.items() if part != "unsup") + U * losses["unsup"]
    total.backward()
    assert values["loss"].item() == pytest.approx(total.item(), rel=1e-10)
    assert {f"loss_{part}": pytest.approx(loss.item(), rel=1e-10) for part, loss in losses.items()} == {
        part: values[part].item() for part in values if part.startswith("loss_")
    }
    assert losses["unsup"].item() > 1e-4
    expected = gradients(*slow)
    assert (gradients(step.network, method) - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_first_step_learns_from_unlabeled_images(name):
    """Without a difference of its own a method's loss would be 0 as long as nothing has been learned."""
    method, step = made(name, TASKS["two classes 3d"])
    method.start(step.network)
    loss = method.parts(step).unsupervised
    loss.backward()
    assert loss.item() > 1e-4
    assert gradients(step.network).norm() > 1e-4


@pytest.mark.parametrize("name", [name for name in STATEMENTS if hasattr(method_of(f"nnUNetTrainer{name}"), "kept_at")])
def test_the_teacher_follows_the_network_as_a_loop_by_hand_says(name):
    method, step = made(name, TASKS["one class 2d"])
    method.start(step.network)
    by_hand = [p.detach().clone() for p in step.network.parameters()]
    of_second_stage = ((0, 0.0), (1, 0.0), (2, 0.99), (3, 0.99))
    for index, kept in of_second_stage if name == "BCP" else ((0, 0.0), (1, 0.5), (2, 2 / 3), (1000, 0.99)):
        step.progress = PROGRESS if index >= 2 else 0.0
        with torch.no_grad():
            for p in step.network.parameters():
                p += torch.randn_like(p)
        step.index = index
        method.after_step(step)
        by_hand = [kept * a + (1 - kept) * p for a, p in zip(by_hand, step.network.parameters(), strict=True)]
    for average, expected in zip(method.average.parameters(), by_hand, strict=True):
        assert torch.allclose(average, expected, rtol=1e-12)


def test_lower_heads_of_mixed_images_learn_reduced_labels_with_half_the_weight():
    method, step = made("BCP", TASKS["two classes 3d"])
    seen, network = recorded(method, step), step.network
    shapes = [(3, 3, *(edge // 2**scale for edge in PATCH[3])) for scale in (0, 1, 1)]
    heads = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    step.network = lambda images: heads
    parts = method.parts(step)
    pairs = [bcp_masks(method, seen, i) for i in range(3)]
    full = bcp_parts(heads[0], pairs, False)
    half = bcp_parts(heads[1], pairs, False, lambda mask: mask[1::2, 1::2, 1::2])
    assert parts.supervised["sup"].item() == pytest.approx((full["sup"] * 2 / 3 + half["sup"] / 3).item(), rel=1e-10)
    assert parts.unsupervised.item() == pytest.approx((full["unsup"] * 2 / 3 + half["unsup"] / 3).item(), rel=1e-10)
    assert network.encoder is not None


def test_in_the_first_stage_labeled_images_and_targets_get_one_box_of_the_next_sample():
    method, step = made("BCP", TASKS["two classes 3d"])
    seen, given = recorded(method, step), {}
    step.progress, step.target = 0.1, [step.target, step.target[..., 1::2, 1::2, 1::2]]
    step.network = lambda images: given.setdefault("images", images).sum().requires_grad_()
    step.supervised_loss = lambda output, target: given.setdefault("target", target) and output
    assert set(method.losses(step)) == {"loss", "loss_sup", "unsup_weight"}
    inside = torch.zeros(PATCH[3], dtype=torch.bool)
    inside[seen.boxes[0]] = True
    for i in range(3):
        following = (i + 1) % 3
        assert torch.equal(given["images"][i][:, inside], seen.images["labeled"][following][:, inside])
        assert torch.equal(given["images"][i][:, ~inside], seen.images["labeled"][i][:, ~inside])
        expected = torch.where(inside, seen.target[following], seen.target[i])
        assert torch.equal(given["target"][0][i], expected)
        assert torch.equal(given["target"][1][i], expected[:, 1::2, 1::2, 1::2])


def test_directions_of_pairs_alternate_over_all_processes():
    method, step = made("BCP", TASKS["one class 2d"])
    ways = []
    for step.rank in (0, 1):
        ways += method.mixture(step).inward.flatten().tolist()
    assert ways == [True, False, True, False, True, False]


def test_noise_is_that_share_of_each_images_own_deviation_and_cut_at_twice_that():
    torch.manual_seed(0)
    images = torch.stack([torch.randn(1, 40, 40), 100 * torch.randn(1, 40, 40), torch.ones(1, 40, 40)]).double()
    noise = noisy(images, 0.1, torch.Generator().manual_seed(0)) - images
    shares = noise[:2, 0] / images[:2, 0].std((1, 2), correction=0).view(2, 1, 1)
    assert shares.abs().amax((1, 2)).tolist() == pytest.approx([0.2, 0.2])
    assert shares.std((1, 2)).tolist() == pytest.approx([0.0959, 0.0959], rel=0.05)  # of a normal that is cut
    assert (noise[2] == 0).all()
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2, 2)
    assert torch.allclose(noise[:2], 0.1 * images[:2].std((2, 3), correction=0, keepdim=True) * drawn[:2], rtol=1e-10)


def test_the_worst_noise_has_its_size_in_every_image_and_changes_more_than_the_first():
    """The images have standard deviations of their own."""
    method, step = made("SSNet", TASKS["two classes 3d"])
    step.images["weak"] = 50 * step.images["weak"]
    given, own = [], method.distance

    def distance(images: torch.Tensor, *arguments: Any) -> torch.Tensor:
        given.append((images.detach(), own(images, *arguments)))
        return given[-1][1]

    method.distance = distance
    method.parts(step)
    images = torch.cat([step.images["labeled"], step.images["weak"]]).flatten(1)
    for noisy_images, _ in given:
        noise = (noisy_images.flatten(1) - images) / images.std(1, correction=0, keepdim=True)
        assert noise.square().mean(1).sqrt().tolist() == pytest.approx([0.0234] * 6)
    assert given[1][1] > 2 * given[0][1]


@pytest.mark.parametrize("name", ["MeanTeacher", "UAMT", "URPC"])
def test_dropout_is_of_the_bottleneck_alone(name):
    method, step = made(name, TASKS["one class 2d"])
    *skips, bottleneck = method.draw_dropout(step)
    assert skips == [None] * len(skips)
    assert 0 < (bottleneck.scale == 0).double().mean() < 1
    assert bottleneck.scale.max().item() == pytest.approx(1 / (1 - method.settings.feature_dropout))


def test_noise_stays_as_drawn_where_its_gradient_is_of_no_use():
    first, gradient = torch.randn(4, 1, 5, 5), torch.randn(4, 1, 5, 5)
    gradient[1], gradient[2, 0, 2, 2], gradient[3] = 0, torch.inf, 1e-30 * gradient[3]
    found = worst_direction(gradient, first)
    expected = [gradient[0], first[1], first[2], 1e30 * gradient[3]]
    for one, wanted in zip(found, expected, strict=True):
        assert torch.allclose(one, wanted / wanted.square().mean().sqrt(), rtol=1e-4)


def test_a_scaled_loss_has_the_same_worst_noise():
    method, step = made("SSNet", TASKS["one class 2d"])
    losses = [method.parts(replace(step, scale=lambda loss, by=by: by * loss)).unsupervised for by in (1, 1024)]
    assert losses[0].item() == losses[1].item()


def test_the_weight_rises_as_a_gaussian_over_a_part_of_the_run():
    settings = ConsistencySettings(unsupervised=2.0, warmup=0.5, labeled_only=0.2)
    assert [settings.unsupervised_at(x) for x in (0.2, 0.45, 0.7, 0.9)] == pytest.approx(
        [2 * math.exp(-5), 2 * math.exp(-5 / 4), 2, 2]
    )
    assert ConsistencySettings(unsupervised=2.0, ramp="linear").unsupervised_at(0.25) == 0.5
    assert ConsistencySettings(unsupervised=2.0, warmup=0.0).unsupervised_at(0.0) == 2
    assert gaussian_ramp(3) == 1


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_bank_gets_means_of_both_projections_of_voxels_that_both_networks_label_rightly(task):
    method, step = made("CAML", task)
    method.parts(step)
    images = torch.cat([step.images["labeled"], step.images["weak"]])
    outputs = [each(images, mode="heads_and_last", labeled_rows=0) for each in (step.network, method.branch)]
    probability = torch.stack([distribution(heads[0], task.regions) for heads, _ in outputs])[:, :3]
    every = [project(last[:3].movedim(1, -1)) for project, (_, last) in zip(method.projections, outputs, strict=True)]
    for kind in range(task.channels):
        known = step.target[:, kind] == 1 if task.regions else step.target[:, 0] == kind
        found = probability[:, :, kind] > 0.5 if task.regions else probability.argmax(2) == kind
        expected = ((every[0] + every[1]) / 2)[known & found[0] & found[1]]
        rows = method.right.rows[kind][method.right.real[kind]]
        assert len(rows) == min(64, len(expected)) > 10
        assert torch.cdist(rows, expected).min(1).values.max() < 1e-6
        assert len(rows.unique(dim=0)) == len(rows)
    before = method.bank.rows.clone()
    method.after_step(step)
    assert (method.bank.rows != before).any(2).sum(1).tolist() == method.right.real.sum(1).tolist()


STEPS = {
    "MeanTeacher_ACDC": 30_000, "CPS_ACDC": 30_000, "DMD_LA": 6000, "UAMT_LA": 6000, "URPC_ACDC": 30_000,
    "BCP_LA": 17_000, "BCP_ACDC": 40_000, "MCNet_LA": 15_000, "MCNet_ACDC": 30_000, "MCNetPlus_LA": 15_000,
    "MCNetPlus_ACDC": 30_000, "DTC_LA": 6000, "SASSNet_LA": 6000,
    "SSNet_LA": 15_000, "SSNet_ACDC": 30_000, "CAML_LA": 15_000,
}  # fmt: skip


def test_presets_have_the_published_length_and_batch():
    presets = {
        f"{method.__name__}_{name}": settings_from_name(f"{method.Settings.trainer}_{name}")
        for method in METHODS
        if issubclass(method, ConsistencyMethod)
        for name in method.presets
    }
    assert {name: preset.epochs * preset.iterations for name, preset in presets.items()} == STEPS
    batches = {name: (preset.batch, preset.unlabeled_batch) for name, preset in presets.items()}
    of_la = {"BCP_LA": (4, 4)}
    assert batches == {name: of_la.get(name, (2, 2) if name.endswith("LA") else (12, 12)) for name in STEPS}
    assert presets["BCP_LA"].pretrain * 17_000 == pytest.approx(2000, abs=10)
    assert presets["MCNet_LA"].unsupervised_at(0.4) == 2


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("BCP_batch1", "takes two labeled and two unlabeled images"),
        ("BCP_ubatch1", "takes two labeled and two unlabeled images"),
        ("CAML_batch1", "attends from one image of a batch to the others"),
        ("CAML_ubatch1", "attends from one image of a batch to the others"),
        ("CAML_bank0p0001", "hold no row of 2 kinds"),
    ],
)
def test_batches_of_one_image_and_a_bank_without_a_row_are_refused(name, detail):
    settings = settings_from_name(f"nnUNetTrainer{name}")
    (problem,) = method_of(settings.trainer).problems(settings, Task(2))
    assert detail in problem.detail


def test_a_network_with_one_scale_is_refused():
    network = network_of(TASKS["one class 2d"])
    network.decoder.seg_layers = network.decoder.seg_layers[:1]
    method = method_of("nnUNetTrainerURPC")(settings_from_name("nnUNetTrainerURPC"), TASKS["one class 2d"])
    with pytest.raises(UnsupportedError, match="one scale, and URPC lets several agree"):
        method.build(network, lambda: network)


@pytest.mark.parametrize(
    ("name", "first"), [("SSNet", "projection.0.weight"), ("CAML", "projections.1.0.weight"), ("DTC", "head.weight")]
)
def test_what_reads_the_last_features_has_their_width_in_deeper_networks(name, first):
    task = TASKS["one class 2d"]
    network = network_of(task)
    width = network.decoder.seg_layers[-1].in_channels
    network.decoder.seg_layers.insert(0, torch.nn.Conv2d(2 * width, task.channels, 1))
    method = method_of(f"nnUNetTrainer{name}")(settings_from_name(f"nnUNetTrainer{name}"), task)
    method.build(network, lambda: network_of(task))
    assert method.get_parameter(first).shape[1] == width
