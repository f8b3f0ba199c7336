"""The target of the joint loss, by hand."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_crossmatch.learning.joint import joint_target
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel

LABELS = torch.arange(16).view(1, 4, 4) % 3
VALID = LABELS != 2


def label(labels: torch.Tensor, valid: torch.Tensor) -> PseudoLabel:
    return PseudoLabel(labels, torch.ones(labels.shape), valid)


@pytest.mark.parametrize("scales", [1, 2])
def test_classes_follow_the_labeled_images_and_what_does_not_count_has_the_next_number(scales):
    target = [torch.zeros(2, 1, 4, 4, dtype=torch.int16), torch.ones(2, 1, 2, 2, dtype=torch.int16)][:scales]
    joined = joint_target(target, [label(LABELS, VALID), label(LABELS, LABELS >= 0)], channels=3)
    assert [scale.dtype for scale in joined] == [torch.int16] * scales
    assert torch.equal(joined[0][:2], target[0])
    assert torch.equal(joined[0][2, 0], torch.where(VALID, LABELS, 3)[0].short())
    assert torch.equal(joined[0][3, 0], LABELS[0].short())
    if scales == 2:  # the host takes the voxel behind the middle
        assert torch.equal(joined[1][3, 0], LABELS[0, 1::2, 1::2].short())


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_have_a_channel_of_ignored_voxels_if_the_labeled_images_have_one(ignore):
    target = torch.zeros(1, 2 + ignore, 4, 4, dtype=torch.int16)
    regions = torch.stack([LABELS > 0, LABELS > 1], dim=1)
    joined = joint_target(target, [label(regions, VALID[:, None].expand_as(regions))], channels=2)
    assert joined.shape == (2, 2 + ignore, 4, 4)
    assert torch.equal(joined[1, :2], regions[0].short())
    assert torch.equal(joined[1, 2:].bool(), ~VALID.expand(int(ignore), 4, 4))


def test_without_deep_supervision_the_target_is_one_tensor():
    assert isinstance(joint_target(torch.zeros(1, 1, 4, 4), [label(LABELS, VALID)], 3), torch.Tensor)
