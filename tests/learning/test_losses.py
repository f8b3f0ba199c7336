"""Masked soft Dice and cross-entropy: values by hand, degenerate cases, properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import pseudo_label

from nnunetv2_crossmatch.learning.losses import SMOOTH, Criterion, MaskedSums, dice_classes
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel


def target(labels: torch.Tensor, valid: torch.Tensor) -> PseudoLabel:
    return PseudoLabel(labels, torch.ones_like(valid, dtype=torch.float64), valid)


def random_case(seed: int, samples: int, regions: bool = False) -> tuple[torch.Tensor, PseudoLabel]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, 3, 4, 5, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(samples, 3, 4, 5, generator=generator, dtype=torch.float64)
    return logits, pseudo_label(teacher, 0.7, regions)


def test_dice_of_two_voxels_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)  # one sample, two classes, two voxels
    p = torch.softmax(logits, 1)[0, 1]
    wanted = 1 - (2 * p[1] + SMOOTH) / (p[0] ** 2 + p[1] ** 2 + 1 + SMOOTH)
    loss = Criterion(False, (1,))(logits, target(torch.tensor([[0, 1]]), torch.tensor([[True, True]])))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-14)


def uncertain_case(p: torch.Tensor) -> tuple[torch.Tensor, PseudoLabel]:
    """20 voxels surely of the class, 200 of which 80 have it and all get probability ``p``, 1000 without it."""
    probability = torch.cat([torch.ones(20), p.expand(200), torch.zeros(1000)]).clamp(1e-12, 1 - 1e-12)
    has_it = torch.cat([torch.ones(20 + 80), torch.zeros(120 + 1000)]).long()[None]
    logits = torch.stack([(1 - probability).log(), probability.log()])[None]
    return logits, target(has_it, torch.ones_like(has_it, dtype=torch.bool))


def probability_of_least_loss(criterion: Criterion) -> float:
    """Where the gradient in the uncertain voxels' common probability changes its sign, by bisection."""
    low, high = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for _ in range(50):
        middle = ((low + high) / 2).requires_grad_()
        criterion(*uncertain_case(middle)).backward()
        low, high = (low, middle.detach()) if middle.grad > 0 else (middle.detach(), high)
    return low.item()


def test_least_dice_overstates_uncertain_voxels():
    dice = Criterion(False, (1,))
    inflated = probability_of_least_loss(dice)
    dice_there = 1 - dice(*uncertain_case(torch.tensor(inflated, dtype=torch.float64))).item()
    assert inflated == pytest.approx(0.4 / dice_there, rel=1e-4)
    assert inflated > 0.5  # 40 % have it, yet all of them would be given to the class


def test_invalid_voxels_do_not_count():
    logits, label = random_case(0, 2)
    changed = torch.where(label.valid[:, None], logits, logits.flip(1) * 5)
    for cross_entropy in (False, True):
        criterion = Criterion(False, (0, 1, 2), cross_entropy=cross_entropy)
        assert torch.equal(criterion(logits, label), criterion(changed, label))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("absent", ["count", "skip"])
@pytest.mark.parametrize("cross_entropy", [False, True])
def test_no_valid_voxel_is_exactly_zero_with_zero_gradient(regions, absent, cross_entropy):
    logits, label = random_case(1, 2, regions)
    logits.requires_grad_()
    nothing = label._replace(valid=torch.zeros_like(label.valid))
    loss = Criterion(regions, (0, 1, 2), absent, cross_entropy)(logits, nothing)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_absent_class_is_counted_near_one_and_pushed_down():
    logits = torch.zeros(1, 2, 50, dtype=torch.float64, requires_grad=True)
    background = target(torch.zeros(1, 50, dtype=torch.int64), torch.ones(1, 50, dtype=torch.bool))
    loss = Criterion(False, (1,), "count")(logits, background)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert (logits.grad[:, 1] > 0).all()


@pytest.mark.parametrize(("probability", "most"), [(0.1, 1e-5), (0.01, 1e-3)])
def test_absent_class_with_some_probability_is_hardly_pushed(probability, most):
    labels = torch.zeros(2, 96, 96, dtype=torch.int64)
    labels[:, 30:60, 30:60] = 1
    logits = torch.zeros(2, 3, 96, 96, dtype=torch.float64)
    logits[:, 1] = torch.where(labels == 1, 2.0, -4.0)
    logits[:, 2] = torch.logit(torch.tensor(probability))
    logits.requires_grad_()
    label = target(labels, torch.ones_like(labels, dtype=torch.bool))
    of_class = [torch.autograd.grad(Criterion(False, (c,))(logits, label), logits)[0].abs().sum() for c in (1, 2)]
    assert of_class[1] < most * of_class[0]


def test_absent_class_is_skipped_on_demand():
    logits = torch.randn(1, 3, 50, dtype=torch.float64)
    label = target(torch.randint(0, 2, (1, 50)), torch.ones(1, 50, dtype=torch.bool))
    skipped = Criterion(False, (0, 1, 2), "skip")(logits, label)
    assert torch.equal(skipped, Criterion(False, (0, 1))(logits, label))


def test_half_precision_logits_are_compared_in_single_precision():
    logits, label = random_case(2, 2)
    loss = Criterion(False, (0, 1, 2))(logits.half(), label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(Criterion(False, (0, 1, 2))(logits, label).item(), rel=1e-2)


@pytest.mark.parametrize(
    ("choice", "channels", "regions", "classes"),
    [
        ("auto", 2, False, (1,)),
        ("auto", 4, False, (0, 1, 2, 3)),
        ("foreground", 4, False, (1, 2, 3)),
        ("all", 2, False, (0, 1)),
        ("auto", 3, True, (0, 1, 2)),
        ("foreground", 1, True, (0,)),
    ],
)
def test_classes_of_the_dice(choice, channels, regions, classes):
    assert dice_classes(choice, channels, regions) == classes


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), samples=st.integers(1, 4), regions=st.booleans())
def test_dice_lies_between_zero_and_one(seed, samples, regions):
    loss = Criterion(regions, (0, 1, 2))(*random_case(seed, samples, regions))
    assert -1e-12 <= loss.item() <= 1


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), samples=st.integers(2, 5), data=st.data())
def test_dice_does_not_depend_on_the_order_of_samples(seed, samples, data):
    logits, label = random_case(seed, samples)
    order = torch.tensor(data.draw(st.permutations(range(samples))))
    shuffled = PseudoLabel(*(field[order] for field in label[:3]))
    criterion = Criterion(False, (0, 1, 2), cross_entropy=True)
    assert criterion(logits[order], shuffled).item() == pytest.approx(criterion(logits, label).item(), rel=1e-12)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.1, 10))
def test_temperature_scales_the_logits(seed, temperature):
    logits, label = random_case(seed, 2)
    cooled = Criterion(False, (0, 1, 2), temperature=temperature)(logits * temperature, label)
    assert cooled.item() == pytest.approx(Criterion(False, (0, 1, 2))(logits, label).item(), rel=1e-9)


def test_a_perfect_confident_student_loses_nothing():
    _, label = random_case(3, 2)
    logits = 100 * torch.nn.functional.one_hot(label.labels.long(), 3).movedim(-1, 1).double()
    assert Criterion(False, (0, 1, 2), cross_entropy=True)(logits, label).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("regions", [False, True])
def test_masked_sums_have_the_gradient_of_their_arithmetic(regions):
    logits, label = random_case(4, 2, regions)
    probability = torch.softmax(logits, 1).requires_grad_()
    classes = (2, 0)
    assert torch.autograd.gradcheck(
        lambda p: MaskedSums.apply(p, label.labels, label.valid, classes, False), probability
    )
