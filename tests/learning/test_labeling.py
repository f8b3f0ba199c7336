"""Thresholds, shifts and soft labels, against what they are for."""

from __future__ import annotations

import pytest
import torch
from waits import made_without_device, noticed_waits

from nnunetv2_crossmatch.learning.labeling import LARGEST_SHIFT, Labeling, sharpened, shifted
from nnunetv2_crossmatch.learning.pseudo_labels import label_of

SHARES = {"organ": 0.25, "tumor": 0.05}


def logits(regions: bool, seed: int = 0) -> torch.Tensor:
    """Classes of different frequency and confidence."""
    scale, offset = (torch.tensor(values).view(3, 1, 1) for values in ((1.0, 3.0, 6.0), (1.0, 0.0, -3.0)))
    z = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * scale + offset
    return z[:, 1:] if regions else z


def probability(regions: bool, seed: int = 0) -> torch.Tensor:
    z = logits(regions, seed)
    return torch.sigmoid(z) if regions else torch.softmax(z, 1)


def keeping(p: torch.Tensor, regions: bool, updates: int) -> Labeling:
    """Keeps 0.7 of every class, after so many updates by the same probabilities."""
    labeling = Labeling(p.shape[1], regions, keep=0.7)
    for _ in range(updates):
        labeling.update(labeling(p, 0.5), {})
    return labeling


@pytest.mark.parametrize("regions", [False, True])
def test_the_same_share_of_every_class_is_kept(regions):
    p = probability(regions)
    labeling = keeping(p, regions, 800)
    label = labeling(p, 0.5)
    for inside in (False, True) if regions else range(3):
        for channel in range(2) if regions else (...,):
            chosen = label.labels[:, channel] == inside
            share = label.valid[:, channel][chosen].float().mean()
            assert share == pytest.approx(0.7, abs=0.02)


def test_a_confidence_that_is_the_threshold_counts():
    """0.5 before the first update, and of a region no less is possible."""
    assert Labeling(1, True, keep=0.7)(torch.full((1, 1, 2, 2), 0.5), 0.9).valid.all()


@pytest.mark.parametrize("regions", [False, True])
def test_the_threshold_of_a_class_stays_where_nothing_of_it_is_found(regions):
    p = probability(regions)
    labeling = keeping(p, regions, 100)
    before = labeling.log_odds.clone()
    assert (before > 0).all()
    without = torch.full_like(p, 0.05) if regions else torch.tensor([0.9, 0.05, 0.05]).view(3, 1, 1).expand_as(p)
    labeling.update(labeling(without, 0.5), {})
    stays = (labeling.log_odds == before).flatten().tolist()
    assert stays == ([False, False, True, True] if regions else [False, True, True])


@pytest.mark.parametrize("regions", [False, True])
def test_an_amount_out_of_range_is_brought_back_and_one_within_stays(regions):
    p = probability(regions)
    labeling = Labeling(p.shape[1], regions, align=True)
    free = [share.item() for share in label_of(p, 0.5, regions).foreground_shares(p.shape[1])]
    shares = {"organ": free[0] / 1.1, "tumor": free[1] / 1.6}
    for _ in range(1500):
        labeling.update(labeling(p, 0.5), shares)
    found = [share.item() for share in labeling(p, 0.5).foreground_shares(p.shape[1])]
    assert found[1] / shares["tumor"] == pytest.approx(1.2, abs=0.02)
    assert found[0] / shares["organ"] < 1.21
    assert labeling.shift[1] < 0
    if regions:
        assert labeling.shift[0] == 0


@pytest.mark.parametrize("regions", [False, True])
def test_an_update_reads_nothing_back_from_the_device_and_makes_all_there(regions):
    p = probability(regions)
    labeling = Labeling(p.shape[1], regions, keep=0.7, align=True)
    with noticed_waits() as found, made_without_device() as elsewhere:
        labeling.update(labeling(p, 0.5), SHARES)
    assert (found, elsewhere) == ([], [])


def test_a_shift_has_an_end_and_a_class_without_labeled_voxels_none():
    labeling, p = Labeling(3, False, align=True), probability(False)
    label = labeling(p, 0.5)
    for _ in range(3000):
        labeling.update(label, {"organ": 0.9, "tumor": 0.0})
    assert labeling.shift.tolist() == [pytest.approx(LARGEST_SHIFT), 0]


@pytest.mark.parametrize("regions", [False, True])
def test_shifts_are_added_to_the_logits(regions):
    shift = torch.tensor([0.7, -1.3])
    z = logits(regions)
    z[:, -2:] += shift.view(2, 1, 1)
    expected = torch.sigmoid(z) if regions else torch.softmax(z, 1)
    assert torch.allclose(shifted(probability(regions), shift, regions), expected, atol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_sharpened_probabilities_are_those_of_doubled_logits(regions):
    z = 2 * logits(regions)
    expected = torch.sigmoid(z) if regions else torch.softmax(z, 1)
    assert torch.allclose(sharpened(probability(regions), regions), expected, atol=1e-6)


def test_without_a_remedy_labels_are_by_one_threshold_and_nothing_is_remembered():
    labeling = Labeling(3, False)
    label = labeling(probability(False), 0.6)
    assert label.soft is None
    assert all(torch.equal(a, b) for a, b in zip(label[:3], label_of(probability(False), 0.6, False)[:3], strict=True))
    assert not labeling.state_dict()
