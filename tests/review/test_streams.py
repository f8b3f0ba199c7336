"""Decodings that are compared: what is perturbed, that draws repeat, and how far two decodings differ."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from small import host_network

from nnunetv2_crossmatch.data.views import WeakStrongViews
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.review.measures import mean_of_defined
from nnunetv2_crossmatch.review.streams import Perturbed, SeededDecoding, Streams, adopted, class_dice

WINDOW = (1, 1, 16, 16)


@pytest.fixture(scope="module")
def network() -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(host_network(2, 3, deep_supervision=False)).eval()


@pytest.fixture(scope="module")
def window() -> torch.Tensor:
    return torch.randn(WINDOW, generator=torch.Generator().manual_seed(0))


def brighter() -> WeakStrongViews:
    bright = MultiplicativeBrightnessTransform(BGContrast((2.0, 3.0)), synchronize_channels=True)
    return WeakStrongViews(ComposeTransforms([RandomTransform(bright, 1.0)]), strong_views=1)


@torch.no_grad()
def test_dropout_of_features_is_that_of_a_slow_statement(network, window):
    """The channels that are left, over their share, of every level; the draw is that of the seed."""
    drawn = FeatureDropout(0.5).draw(network.feature_shapes(1, WINDOW[2:]), torch.Generator().manual_seed(7), "cpu")
    features = [level * one.scale for level, one in zip(network.encoder(window), drawn, strict=True)]
    decoding = SeededDecoding(network, Perturbed(dropout=FeatureDropout(0.5)), seed=7)
    assert torch.allclose(decoding(window), network.decoder(features), atol=1e-6)
    assert not torch.allclose(decoding(window), network(window), atol=1e-3)
    assert len({tuple(one.scale.flatten().tolist()) for one in drawn}) == len(drawn)


@torch.no_grad()
@pytest.mark.parametrize("perturbed", [Perturbed(dropout=FeatureDropout(0.5)), Perturbed(views=brighter())])
def test_all_windows_of_a_draw_are_perturbed_alike_and_other_draws_otherwise(network, window, perturbed):
    first, again = (SeededDecoding(network, perturbed, seed=1) for _ in range(2))
    assert torch.equal(first(window), first(window))
    assert torch.equal(first(window), again(window))
    assert not torch.equal(first(window), SeededDecoding(network, perturbed, seed=2)(window))


@torch.no_grad()
def test_the_clean_decoding_is_the_networks_and_pools_the_last_features(network, window):
    decoding = SeededDecoding(network, Perturbed())
    assert torch.allclose(decoding(window), network(window), atol=1e-6)
    assert torch.allclose(decoding.pooled[0], network.encoder(window)[-1].mean((0, 2, 3)), atol=1e-6)


def test_a_strong_view_is_the_trainings(network, window):
    seen = []
    decoding = SeededDecoding(network, Perturbed(views=brighter()))
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        decoding(window)
    network.encoder._forward_pre_hooks.clear()
    factors = seen[0] / window
    assert torch.allclose(factors, factors.flatten()[0].expand_as(factors), atol=1e-4)
    assert 2 <= float(factors.flatten()[0]) <= 3


def test_dice_of_classes_and_regions_by_hand():
    first, second = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 0])
    assert class_dice(first, second, regions=False) == pytest.approx([2 / 3, 2 / 3])
    assert class_dice(0 * first, 0 * second, regions=False) == []
    a, b = torch.tensor([[1, 1, 0], [0, 0, 0]]) > 0, torch.tensor([[1, 0, 0], [0, 0, 0]]) > 0
    assert mean_of_defined(class_dice(a, b, regions=True)) == pytest.approx(2 / 3)
    assert math.isnan(class_dice(a, b, regions=True)[1])


def test_networks_are_adopted_or_known_as_others(network):
    assert adopted(network) is network
    assert adopted(SimpleNamespace(_orig_mod=network)) is network
    assert isinstance(adopted(host_network(2, 3, deep_supervision=False)), EncoderDecoder)
    assert adopted(torch.nn.Conv2d(1, 1, 1)) is None


@pytest.mark.parametrize("regions", [False, True])
def test_disagreement_is_that_of_a_slow_statement(network, regions):
    """Two other networks against the first one, on a case of one window."""
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    others = [{name: value + 0.3 * torch.randn_like(value) for name, value in weights.items()} for _ in range(2)]

    def of_one_window(data: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return predictor.network(data[:, 0][None])[0][:, None]

    predictor = SimpleNamespace(network=network, use_mirroring=True, predict_sliding_window_return_logits=of_one_window)
    streams = object.__new__(Streams)
    streams.model = SimpleNamespace(predictor=predictor, regions=regions)
    streams.network, streams.weights, streams.perturbations, streams.others = network, weights, {}, {"peer": others}
    data = torch.randn(1, 1, 16, 16)
    found = streams.disagreement(data)
    labels = []
    for each in (weights, *others):
        network.load_state_dict(each)
        with torch.no_grad():
            logits = network(data[:, 0][None])[0]
        labels.append(logits > 0 if regions else torch.stack([logits.argmax(0) == value for value in range(3)]))
    for value, other in zip(found.kinds["peer"], labels[1:], strict=True):
        start = 0 if regions else 1
        dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(labels[0][start:], other[start:], strict=True)]
        dice = [float(one) for one in dice if one == one]
        assert value == pytest.approx(1 - sum(dice) / len(dice))
    differs = torch.stack([(labels[0] != other).any(0) for other in labels[1:]]).float().mean(0)
    assert torch.equal(found.contested[0], differs)
    assert predictor.network is network
    assert predictor.use_mirroring
