"""Moving means of the amounts of pseudo-labels, and the weight that waits for them."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_crossmatch.learning.amounts import MeanAmounts
from nnunetv2_crossmatch.learning.pseudo_labels import label_of


def after(found: list[list[float]], wanted: list[float]) -> MeanAmounts:
    """The means after steps with those shares."""
    amounts = MeanAmounts(len(wanted))
    for shares in found:
        amounts.update(torch.tensor(shares), torch.tensor(wanted))
    return amounts


def test_a_mean_begins_at_one_and_takes_a_hundredth_of_each_step():
    found, wanted = [[0.3, 0.0], [0.6, 0.1], [0.0, 0.2]], [0.2, 0.05]
    expected = [1.0, 1.0]
    for shares in found:
        now = [share / of_volumes for share, of_volumes in zip(shares, wanted, strict=True)]
        expected = [0.99 * mean + 0.01 * one for mean, one in zip(expected, now, strict=True)]
    assert after(found, wanted).mean.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_class_that_labeled_volumes_do_not_have_stays_at_one():
    assert after([[0.5, 0.5]] * 200, [0.0, 0.5]).mean.tolist() == [1.0, pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("means", "least", "within"),
    [
        ([1.0, 1.0], 0.5, True),
        ([0.5, 2.0], 0.5, True),
        ([0.49, 1.0], 0.5, False),
        ([1.0, 2.01], 0.5, False),
        ([0.49, 2.01], 0.25, True),
        ([1.01, 1.0], 1.0, False),
        ([1.0, 0.0], 0.1, False),
    ],
)
def test_means_are_within_if_none_is_less_than_the_least_or_more_than_its_inverse(means, least, within):
    amounts = MeanAmounts(len(means))
    amounts.mean.copy_(torch.tensor(means))
    assert amounts.within(least).item() == within


@pytest.mark.parametrize("regions", [False, True])
def test_shares_of_one_process_are_those_of_its_labels(regions):
    p = torch.softmax(torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2, 1)
    label = label_of(p, 0.0, regions)
    expected = [(p[:, c] > 0.5).float().mean() if regions else (p.argmax(1) == c).float().mean()
                for c in range(0 if regions else 1, 4)]  # fmt: skip
    assert torch.allclose(label.shares_over_processes(4), torch.stack(expected))
