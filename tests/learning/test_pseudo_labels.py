"""Hard labels, confidence and the threshold."""

from __future__ import annotations

import pytest
import torch
from small import pseudo_label

from nnunetv2_crossmatch.learning.pseudo_labels import reference_label


def test_softmax_labels_are_the_likeliest_class_and_its_probability():
    logits = torch.log(torch.tensor([[[0.1, 0.5], [0.7, 0.3], [0.2, 0.2]]]))
    label = pseudo_label(logits, 0.6, regions=False)
    assert label.labels.tolist() == [[1, 0]]
    assert label.confidence[0].tolist() == pytest.approx([0.7, 0.5])
    assert label.valid.tolist() == [[True, False]]


def test_regions_are_judged_one_by_one_on_both_sides_of_one_half():
    logits = torch.logit(torch.tensor([[[0.9, 0.2], [0.6, 0.05]]]))
    label = pseudo_label(logits, 0.85, regions=True)
    assert label.labels.tolist() == [[[True, False], [True, False]]]
    assert label.confidence[0].flatten().tolist() == pytest.approx([0.9, 0.8, 0.6, 0.95])
    assert label.valid.tolist() == [[[True, False], [False, True]]]


def test_confidence_equal_to_tau_counts():
    assert pseudo_label(torch.zeros(1, 2, 3), 0.5, regions=False).valid.all()


@pytest.mark.parametrize("regions", [False, True])
def test_pseudo_labels_are_constant(regions):
    logits = torch.randn(2, 3, 4, requires_grad=True)
    assert not any(field.requires_grad for field in pseudo_label(logits, 0.5, regions)[:3])


def test_half_precision_logits_are_judged_in_single_precision():
    assert pseudo_label(torch.randn(1, 2, 4).half(), 0.5, regions=False).confidence.dtype == torch.float32


def test_labels_of_labeled_images_count_where_they_are_not_ignored():
    target = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.int16)  # of three classes, 3 is ignored
    label = reference_label(target, 3, regions=False)
    assert label.labels.tolist() == [[0, 1, 2, 0]]
    assert label.labels.dtype == torch.uint8
    assert label.valid.tolist() == [[True, True, True, False]]
    assert label.confidence.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_of_labeled_images_are_ignored_together(ignore):
    target = torch.tensor([[[1, 1, 0], [0, 1, 0], [0, 0, 1]]], dtype=torch.int16)  # the last channel: ignored voxels
    label = reference_label(target[:, : 2 + ignore], 2, regions=True)
    assert label.labels.tolist() == [[[True, True, False], [False, True, False]]]
    assert label.valid.tolist() == [[[True, True, not ignore]] * 2]
