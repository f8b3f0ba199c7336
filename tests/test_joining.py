"""Joining skips again in the backward pass: the same gradient, and nothing joined is held until then."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.joining import as_is, joined, stacked


def stage() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(inplace=True))
    return nn.Sequential(block, nn.Conv2d(4, 2, 3)).double()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, c, 6, 6, generator=random, dtype=torch.float64, requires_grad=True) for c in (2, 3))


def gradients(output: torch.Tensor, module: nn.Module, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(output.square().sum(), [*leaves, *module.parameters()]))


def test_gradients_are_those_of_the_plain_stage():
    module, (up, skip) = stage(), inputs()
    expected = gradients(module(torch.cat((up * 2, skip * 3), dim=1)), module, up, skip)
    found = gradients(joined(module, up * 2, lambda: skip * 3), module, up, skip)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_joined_tensor_is_not_held():
    module, (up, skip) = stage(), inputs()
    seen: list[weakref.ref] = []
    module.register_forward_pre_hook(lambda _, arguments: seen.append(weakref.ref(arguments[0])))
    output = joined(module, up * 2, as_is(skip))
    gc.collect()
    assert seen[0]() is None
    assert output.grad_fn is not None


def test_the_skip_is_made_again_in_the_backward_pass_only():
    module, (up, skip) = stage(), inputs()
    calls: list[int] = []
    output = joined(module, up, lambda: (calls.append(1), skip * 1)[1])
    assert len(calls) == 1
    output.sum().backward()
    assert len(calls) == 2


def test_without_gradient_nothing_is_made_again():
    module, (up, skip) = stage(), inputs()
    with torch.no_grad():
        found = joined(module, up, as_is(skip))
    assert torch.equal(found, module(torch.cat((up, skip), dim=1)))


@pytest.mark.parametrize("rows", [(1,), (2, 1, 3)])
def test_stacked_levels_come_one_after_the_other(rows):
    parts = [torch.randn(n, 3, 4) for n in rows]
    assert torch.equal(stacked([as_is(part) for part in parts])(), torch.cat(parts))
