"""Orientations are exact moves of voxels, drawn evenly, and quarter turns stay where the patch allows them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from nnunetv2_crossmatch.learning.orientation import Orientation, draw_orientations, oriented, turning_planes
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel


@pytest.mark.parametrize(
    ("patch", "spacing", "planes"),
    [
        ((16, 16), (1.0, 1.0), [(-2, -1)]),
        ((16, 16), (1.0, 1.2), []),
        ((16, 16), (1.0, 1.011), []),
        ((16, 16), (1.0, 1.009), [(-2, -1)]),
        ((16, 16), (1e-7, 1.2e-7), []),  # nanometres
        ((16, 24), (1.0, 1.0), []),
        ((8, 16, 16), (3.0, 1.0, 1.0), [(-2, -1)]),
        ((16, 16, 16), (3.0, 0.9999, 1.0), [(-2, -1)]),
        ((16, 8, 16), (1.0, 1.0, 1.0), [(-3, -1)]),
        ((8, 8, 8), (0.5, 0.5, 0.5), [(-3, -2), (-3, -1), (-2, -1)]),
    ],
)
def test_quarter_turns_are_in_planes_of_equal_edges_and_spacing(patch, spacing, planes):
    assert turning_planes(patch, spacing) == planes
    drawn = draw_orientations(np.random.default_rng(0), 400, patch, spacing)
    assert {each.plane for each in drawn if each.turns} == set(planes)


def test_all_orientations_of_a_square_are_drawn_equally_often():
    drawn = draw_orientations(np.random.default_rng(0), 8000, (4, 4), (1.0, 1.0))
    counts = Counter(str(oriented(torch.arange(16).view(1, 4, 4), [each]).tolist()) for each in drawn)
    assert len(counts) == 8  # of the square's symmetries, each drawn in two ways
    assert all(count == pytest.approx(1000, rel=0.15) for count in counts.values())


def test_a_voxel_goes_where_its_orientation_says():
    """By hand, on a 2 x 2 image; a quarter turn goes from the plane's first axis to its second one."""
    image = torch.tensor([[[1, 2], [3, 4]]])
    cases = {
        ((), 0): [[1, 2], [3, 4]],
        ((-1,), 0): [[2, 1], [4, 3]],
        ((-2,), 0): [[3, 4], [1, 2]],
        ((), 1): [[2, 4], [1, 3]],
        ((-1,), 1): [[1, 3], [2, 4]],
    }
    for (flipped, turns), expected in cases.items():
        assert oriented(image, [Orientation(flipped, turns, (-2, -1))])[0].tolist() == expected


@pytest.mark.parametrize("regions", [False, True])
def test_image_labels_and_confidence_move_together(regions):
    patch = (6, 8, 8)
    image = torch.rand(3, 2, *patch)
    fields = image if regions else image[:, 0]
    label = PseudoLabel((100 * fields).long(), fields, fields > 0.5)
    drawn = draw_orientations(np.random.default_rng(1), 3, patch, (2.0, 1.0, 1.0))
    moved, turned = oriented(image, drawn), label.oriented(drawn)
    moved = moved if regions else moved[:, 0]
    assert not torch.equal(moved, fields)
    assert torch.equal(turned.labels, (100 * moved).long())
    assert torch.equal(turned.confidence, moved)
    assert torch.equal(turned.valid, moved > 0.5)
