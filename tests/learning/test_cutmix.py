"""Boxes are whole, of the stated size and shape; pasting moves what it says and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_crossmatch.learning.cutmix import draw_box, draw_boxes, draw_donors, paste
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel

# Of UniMatch and the authors' released code.
LEAST, MOST = 0.02, 0.4
LONGEST = 1 / 0.3


def edges(box) -> np.ndarray:
    return np.array([side.stop - side.start for side in box])


@pytest.mark.parametrize("patch", [(256, 256), (320, 64), (112, 112, 80), (14, 256, 224), (8, 8, 8)])
def test_2000_boxes_have_the_stated_volume_shape_and_spread(patch):
    rng = np.random.default_rng(0)
    boxes = [draw_box(rng, patch) for _ in range(2000)]
    sizes = np.array([edges(box) for box in boxes])
    shares = sizes.prod(1) / np.prod(patch)
    assert LEAST <= shares.min() < LEAST + 0.02
    assert MOST - 0.02 < shares.max() <= MOST
    assert all(0 <= side.start < side.stop <= edge for box in boxes for side, edge in zip(box, patch, strict=True))
    relative = sizes / np.array(patch)
    rounding = (1 + 0.5 / sizes.min(1)) / (1 - 0.5 / sizes.min(1))
    ratio = relative.max(1) / relative.min(1)
    assert (ratio <= LONGEST * rounding + 1e-9).all()
    assert ratio.max() > 0.8 * LONGEST
    assert shares.mean() == pytest.approx((LEAST + MOST) / 2, abs=0.03)
    for axis in range(len(patch)):  # no axis is preferred, and boxes reach both ends of each
        assert relative[:, axis].mean() == pytest.approx(relative.mean(), rel=0.1)
        assert min(box[axis].start for box in boxes) == 0
        assert max(box[axis].stop for box in boxes) == patch[axis]


@given(st.lists(st.integers(4, 300), min_size=2, max_size=3), st.integers(0, 2**31))
def test_boxes_fit_any_patch(patch, seed):
    box = draw_box(np.random.default_rng(seed), patch)
    assert LEAST <= edges(box).prod() / np.prod(patch) <= MOST
    assert all(0 <= side.start < side.stop <= edge for side, edge in zip(box, patch, strict=True))


def test_a_patch_of_one_voxel_has_no_box():
    with pytest.raises(ValueError, match="no CutMix box"):
        draw_box(np.random.default_rng(0), (1, 1))


def test_boxes_come_with_the_stated_probability():
    drawn = draw_boxes(np.random.default_rng(0), 4000, (16, 16), 0.5)
    assert np.mean([box is not None for box in drawn]) == pytest.approx(0.5, abs=0.03)


def test_a_single_sample_has_no_partner():
    assert draw_boxes(np.random.default_rng(0), 1, (16, 16), 1.0) == [None]


@given(st.integers(2, 4), st.integers(0, 2**31), st.sampled_from([(9, 7), (5, 6, 8)]))
def test_inside_the_box_stands_the_neighbour_outside_the_sample_itself(samples, seed, patch):
    boxes = draw_boxes(np.random.default_rng(seed), samples, patch, 0.6)
    tensor = torch.arange(samples * 2 * np.prod(patch)).view(samples, 2, *patch)
    before, result = tensor.clone(), paste(tensor, boxes)
    assert torch.equal(tensor, before)
    for sample, box in enumerate(boxes):
        inside = torch.zeros(patch, dtype=torch.bool)
        if box is not None:
            inside[box] = True
        assert torch.equal(result[sample][:, inside], tensor[(sample + 1) % samples][:, inside])
        assert torch.equal(result[sample][:, ~inside], tensor[sample][:, ~inside])


@pytest.mark.parametrize("regions", [False, True])
def test_labels_confidence_and_valid_follow_their_image(regions):
    patch, samples = (6, 8, 8), 3
    boxes = draw_boxes(np.random.default_rng(3), samples, patch, 1.0)
    shape = (samples, 2, *patch) if regions else (samples, *patch)
    image = torch.rand(shape)  # every field is a function of the image, voxel by voxel
    label = PseudoLabel((image * 7).long(), image, image > 0.5)
    mixed, pasted = paste(image, boxes), label.cutmixed(boxes)
    assert torch.equal(pasted.labels, (mixed * 7).long())
    assert torch.equal(pasted.confidence, mixed)
    assert torch.equal(pasted.valid, mixed > 0.5)


def test_boxes_come_from_labeled_samples_with_the_stated_probability():
    rng, boxes = np.random.default_rng(0), [(slice(0, 1),), None] * 2000
    donors = draw_donors(rng, boxes, 3, 0.3)
    assert not any(donor is not None for donor in donors[1::2])
    counts = [donors[::2].count(donor) for donor in (None, 0, 1, 2)]
    assert counts == [pytest.approx(1400, rel=0.1), *[pytest.approx(200, rel=0.25)] * 3]


def test_a_box_of_a_labeled_sample_brings_its_image_and_its_label():
    unlabeled, labeled = torch.zeros(2, 1, 4, 4), 1 + torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    boxes, donors = [(slice(0, 2), slice(1, 3)), (slice(3, 4), slice(0, 4))], [2, None]
    image = paste(unlabeled, boxes, labeled, donors)
    assert image[0, 0].tolist() == [[0, 3, 3, 0], [0, 3, 3, 0], [0] * 4, [0] * 4]
    assert not image[1].any()
    valid = labeled[:, 0] != 3  # the third labeled image is ignored
    reference = PseudoLabel(labeled[:, 0].long(), torch.ones(3, 4, 4), valid)
    own = PseudoLabel(torch.zeros(2, 4, 4, dtype=torch.long), torch.full((2, 4, 4), 0.5), torch.ones(2, 4, 4) > 0)
    mixed = own.cutmixed(boxes, reference, donors)
    assert torch.equal(mixed.labels, image[:, 0].long())
    assert torch.equal(mixed.confidence == 1, image[:, 0] == 3)
    assert torch.equal(~mixed.valid, image[:, 0] == 3)
