"""Voxels by class, a bank of their features, and the level of attention, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.errors import UnsupportedError
from nnunetv2_crossmatch.learning.attention import attention_level
from nnunetv2_crossmatch.learning.feature_bank import FeatureBank, bank_rows
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel
from nnunetv2_crossmatch.learning.voxels import WIDTH, Voxels, best, chosen, masks_by_kind, shares


def test_of_each_kind_the_voxels_with_the_highest_scores_are_chosen():
    features = torch.arange(16.0).view(2, 1, 2, 4)  # of a voxel: its number
    masks = torch.zeros(2, 2, 2, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 0, 1] = True  # numbers 0 to 3 and 12 to 15
    masks[1, 1, 0, 2] = True  # number 10
    scores = torch.linspace(0, 1, 16).view(2, 1, 2, 4)
    rows, real = chosen(features, masks, scores, 5)
    assert rows[0, :, 0].tolist() == [15, 14, 13, 12, 3]
    assert real.tolist() == [[True] * 5, [True] + [False] * 4]
    assert rows[1, 0, 0] == 10
    assert chosen(features, masks, scores, 99).real.sum(1).tolist() == [8, 1]
    kept = best(Voxels(rows, real), rows[..., 0].flip(1) + 1, 2)
    assert kept.rows[0, :, 0].tolist() == [3, 12]
    assert kept.real[1].tolist() == [True, False]


def test_a_score_of_zero_is_one():
    scores, mask = torch.zeros(1, 1, 3), torch.tensor([[[True, False, True]]])
    few = chosen(torch.arange(3.0)[None, None], mask, scores, 2)
    assert few.real.tolist() == [[True, True]]
    assert best(few, torch.zeros(1, 2), 1).real.tolist() == [[True]]


def test_masks_are_of_valid_voxels_of_each_class_or_region():
    labels, valid = torch.tensor([[0, 1, 2, 2]]), torch.tensor([[True, True, True, False]])
    of_classes = masks_by_kind(PseudoLabel(labels, valid, valid), 3)
    assert of_classes.int().tolist() == [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]]
    regions = PseudoLabel(labels[None] > 0, valid[None], valid[None])
    assert masks_by_kind(regions, 1).int().tolist() == [[[0, 1, 1, 0]]]


def test_the_bank_is_a_ring_whose_rows_stay_where_nothing_real_comes():
    bank = FeatureBank(1, 5)
    for turn, values in enumerate([(1, 2), (3, None), (5, 6)]):
        rows = torch.tensor([[-1.0 if value is None else value] for value in values]).expand(2, WIDTH)[None]
        bank.add(Voxels(rows, torch.tensor([[value is not None for value in values]])), turn, distributed=False)
    assert bank.rows[0, :, 0].tolist() == [6, 2, 3, 0, 5]
    assert bank.filled.tolist() == [[1, 1, 1, 0, 1]]
    likeness = bank(torch.ones(1, 1, WIDTH))
    assert likeness[0].tolist() == pytest.approx([0.25, 0.25, 0.25, 0, 0.25])


def test_each_kind_has_a_selector_of_its_own():
    selectors = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(2)])
    with torch.no_grad():
        for weight, selector in enumerate(selectors):
            selector.weight.fill_(weight)
    rows = torch.tensor([[[1.0], [2.0]], [[0.0], [2.0]]])
    assert torch.allclose(shares(selectors, rows), torch.tensor([[0.5, 0.5], [0.5, 0.8808]]), atol=1e-4)
    with pytest.raises(ValueError, match="shorter"):
        shares(selectors, rows[:1])


def test_more_voxels_than_rows_fill_the_bank_once():
    bank = FeatureBank(1, 3)
    rows = torch.arange(5.0).view(1, 5, 1).expand(1, 5, WIDTH)
    bank.add(Voxels(rows, torch.ones(1, 5, dtype=torch.bool)), 7, distributed=False)
    assert sorted(bank.rows[0, :, 0].tolist()) == [0, 1, 2]


def test_a_bank_has_as_many_rows_as_its_size_allows():
    assert bank_rows(0.5, 2) * 2 * WIDTH * 4 == 0.5 * 2**20
    assert bank_rows(0.001, 100) == 0


def network_of_places(*places: int) -> SimpleNamespace:
    return SimpleNamespace(feature_shapes=lambda rows, size: [(rows, 1, count) for count in places])


def test_attention_is_on_the_finest_level_of_the_coarser_half_with_few_places():
    assert attention_level(network_of_places(100_000, 50_000, 10_000, 2049, 2048, 9), (1,)) == 4
    assert attention_level(network_of_places(1000, 500, 250, 125), (1,)) == 2
    with pytest.raises(UnsupportedError, match="coarsest features have 2049 places"):
        attention_level(network_of_places(9000, 2049), (1,))
