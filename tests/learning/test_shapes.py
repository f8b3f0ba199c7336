"""Largest components and distance maps of labels, by hand and by all pairs of voxels."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from slow_consistency import largest_component, signed_distance
from waits import noticed_waits

from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel
from nnunetv2_crossmatch.learning.shapes import distance_maps, largest_components


def label_of(labels: torch.Tensor, valid: torch.Tensor | None = None) -> PseudoLabel:
    valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    return PseudoLabel(labels, valid, valid)


def random_labels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 12, 12), (2, 5, 6, 6)])
def test_of_every_class_the_largest_component_stays(shape):
    labels = random_labels(*shape)
    kept = largest_components(labels, 3).numpy()
    for before, after in zip(labels.numpy(), kept, strict=True):
        for value in (1, 2):
            assert np.array_equal(after == value, largest_component(before == value))


def test_what_numpy_is_given_was_copied_from_the_device():
    labels = random_labels(2, 5, 6)
    for use in (lambda: largest_components(labels, 3), lambda: distance_maps(label_of(labels), 3)):
        with noticed_waits() as found:
            use()
        copied, given = (
            [place for place, name in enumerate(found) if name == each] for each in ("Tensor.cpu", "Tensor.numpy")
        )
        assert copied == [place - 1 for place in given] != []


def test_the_cost_of_a_mask_does_not_grow_with_the_square_of_its_components():
    few, many = torch.zeros(2, 1, 64, 64, 64, dtype=torch.bool)
    few[:, 8:40, 8:40, 8:40] = True
    many[:, ::2, ::2, ::2] = True  # 32 768 of one voxel each

    def seconds(mask: torch.Tensor) -> float:
        start = time.thread_time()
        largest_components(mask[None], 1)
        return time.thread_time() - start

    assert min(seconds(many) for _ in range(3)) < 20 * min(seconds(few) for _ in range(3))


def test_regions_are_cleaned_one_by_one_and_empty_ones_stay_empty():
    labels = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    labels[0, 0, :3, :3] = labels[0, 0, 6, 6] = True
    kept = largest_components(labels, 2)
    assert kept[0, 0].sum() == 9
    assert kept[0, 1].sum() == 0


@pytest.mark.parametrize("shape", [(2, 12, 12), (1, 5, 6, 6)])
def test_distances_equal_those_of_all_pairs_of_voxels(shape):
    labels = torch.zeros(shape, dtype=torch.long)
    labels[..., 2:5, 1:6] = 1
    labels[..., 4:6, 0:4] = 2
    maps, known = distance_maps(label_of(labels), 3, dtype=torch.float64)
    assert known.all()
    for sample, mask in zip(maps, labels, strict=True):
        for distances, value in zip(sample, (1, 2), strict=True):
            assert np.allclose(distances, signed_distance((mask == value).numpy()), rtol=1e-12)
    assert maps.min() == -1
    assert maps.max() == 1


def test_distances_are_those_in_millimetres():
    labels = torch.zeros(1, 1, 9, dtype=torch.bool)
    labels[..., :2] = True
    (line,), _ = distance_maps(label_of(labels[:, :, None].expand(1, 1, 3, 9)), 1, (5.0, 0.5))
    assert line[0, 1].tolist() == pytest.approx([-1, 0, 1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1])


def test_empty_and_full_masks_have_no_distance():
    labels = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    labels[0, 1] = True
    maps, known = distance_maps(label_of(labels), 2)
    assert (maps == 0).all()
    assert known.all()


def test_a_distance_is_known_only_if_no_ignored_voxel_is_nearer_than_the_boundary():
    labels = torch.zeros(1, 1, 1, 10, dtype=torch.bool)
    labels[..., :3] = True
    valid = torch.ones_like(labels)
    valid[..., 8:] = False
    known = distance_maps(label_of(labels, valid), 1)[1]
    assert known.flatten().tolist() == [True] * 6 + [False] * 4  # voxel 6: 4 from the mask, 2 from the ignored part
    nothing = distance_maps(label_of(torch.zeros_like(labels), valid), 1)[1]
    assert not nothing.any()
