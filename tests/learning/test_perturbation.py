"""Feature dropout: the three kinds, levels, modes, replay."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_crossmatch.learning.perturbation import SELU_NEGATIVE_SATURATION, FeatureDropout, Perturbation, perturbed

SHAPES = [(64, 32, 8, 8), (64, 16, 4, 4)]


def draw(dropout: FeatureDropout, seed: int = 0):
    return dropout.draw(SHAPES, torch.Generator().manual_seed(seed), torch.device("cpu"))


def normal_features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_channel_dropout_zeroes_whole_channels_and_scales_the_rest(rate):
    dropout, features = FeatureDropout(rate), normal_features()
    for before, after in zip(features, perturbed(features, draw(dropout)), strict=True):
        dropped = (after == 0).flatten(2).all(2)
        assert dropped.float().mean().item() == pytest.approx(rate, abs=0.05)
        assert torch.allclose(after[~dropped], before[~dropped] / (1 - rate))


@pytest.mark.parametrize("kind", ["alpha", "featurealpha"])
def test_alpha_dropout_keeps_mean_and_variance(kind):
    dropout = FeatureDropout(0.25, kind)
    for after in perturbed(normal_features(), draw(dropout)):
        assert after.mean().item() == pytest.approx(0, abs=0.1)
        assert after.var().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "torch_kind"), [("alpha", torch.nn.AlphaDropout), ("featurealpha", torch.nn.FeatureAlphaDropout)]
)
def test_alpha_dropout_maps_values_as_torch_does(kind, torch_kind):
    rate, value = 0.25, 0.7
    ours = FeatureDropout(rate, kind)
    mine = perturbed([torch.full(shape, value) for shape in SHAPES], draw(ours))[0].unique()
    theirs = torch_kind(rate)(torch.full(SHAPES[0], value)).unique()
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert len(mine) == 2


def test_featurealpha_drops_whole_channels_and_alpha_single_values():
    per_channel = {kind: draw(FeatureDropout(0.5, kind))[0].scale for kind in ("alpha", "featurealpha")}
    assert per_channel["featurealpha"].shape == (64, 32, 1, 1)
    assert per_channel["alpha"].shape == SHAPES[0]


def test_saturation_constant_is_that_of_selu():
    assert torch.nn.functional.selu(torch.tensor(-100.0)).item() == pytest.approx(SELU_NEGATIVE_SATURATION, rel=1e-6)


def test_bottleneck_only_leaves_the_skips_alone():
    dropout, features = FeatureDropout(0.5, levels="bottleneck"), normal_features()
    after = perturbed(features, draw(dropout))
    assert after[0] is features[0]
    assert not torch.equal(after[1], features[1])


def test_without_a_perturbation_the_features_stay_the_same_list():
    features = normal_features()
    assert perturbed(features, None) is features


def test_same_draw_gives_same_features_and_another_seed_others():
    dropout, features = FeatureDropout(0.5, "alpha"), normal_features()
    drawn = draw(dropout)
    assert all(torch.equal(a, b) for a, b in zip(perturbed(features, drawn), perturbed(features, drawn), strict=True))
    assert torch.equal(draw(dropout)[0].scale, drawn[0].scale)
    assert not torch.equal(draw(dropout, seed=1)[0].scale, drawn[0].scale)


def test_half_precision_stays_half():
    dropout = FeatureDropout(0.5, "alpha")
    halves = [level.half() for level in normal_features()]
    assert {level.dtype for level in perturbed(halves, draw(dropout))} == {torch.float16}


def test_alpha_dropout_holds_one_byte_for_each_value_and_gives_what_scale_and_shift_give():
    """Bit for bit, values and gradients."""
    features, results = normal_features(), []
    drawn = draw(FeatureDropout(0.75, "alpha"))
    assert [(level.kept.element_size(), level.kept.shape) for level in drawn] == [(1, shape) for shape in SHAPES]
    for perturbation in (drawn, [Perturbation(level.scale, level.shift) for level in drawn]):
        levels = [level.clone().requires_grad_() for level in features]
        after = perturbed(levels, perturbation)
        sum(level.square().sum() for level in after).backward()
        results.append([*after, *(level.grad for level in levels)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
