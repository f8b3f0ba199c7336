"""What a training needs of plans that somebody has edited."""

from __future__ import annotations

import pytest

from nnunetv2_crossmatch.training.requirements import patch_problems


def plans_with(patch: list[int], strides: object) -> dict:
    network = {"network_class_name": "network", "arch_kwargs": {"strides": strides}, "_kw_requires_import": []}
    return {"configurations": {"2d": {"patch_size": patch, "architecture": network}}}


def told(patch: list[int], strides: object) -> list[str]:
    return [str(problem) for problem in patch_problems(plans_with(patch, strides), "2d")]


@pytest.mark.parametrize("strides", [[[1, 1], [2, 2], [2, 1]], [1, [2, 2], [2, 1]], [[1, 1]], None, []])
def test_a_patch_that_the_strides_divide_fits(strides):
    assert told([8, 6], strides) == []


def test_a_patch_that_does_not_fit_is_told_with_the_nearest_one_that_does():
    (line,) = told([10, 7], [1, [2, 2], [2, 1]])
    assert "patch does not fit the network in 2d: the patch [10, 7] is not divisible by [4, 2]" in line
    assert 'set "patch_size" to [8, 8]' in line
    assert told([8, 8], [1, [2, 2], [2, 1]]) == []
    assert 'set "patch_size" to [4, 8]' in told([1, 8], [2, 2])[0]


@pytest.mark.parametrize("strides", [[[1, 1, 1], [2, 2, 2]], [[1, 1], [2, 2, 2]], [[2], [2]], [1, [2]]])
def test_strides_of_another_number_of_axes_are_told(strides):
    (line,) = told([8, 8], strides)
    assert f"the patch [8, 8] has 2 axes, the strides of the network are {strides}" in line
