"""The wrapped network: the host's state dict and outputs, modes, compilation."""

from __future__ import annotations

import pytest
import torch
from small import host_network, random_step
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from nnunetv2_crossmatch.errors import UnsupportedError
from nnunetv2_crossmatch.learning.auxiliary_decoder import upsampling
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.methods.crossmatch import loss_table

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TABLE = loss_table(0.3)
ROLES = {"views": TABLE.views, "teachers": TABLE.teachers, "students": TABLE.students}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_state_dict_and_prediction_are_the_hosts(residual, dimensions):
    host = host_network(dimensions, 3, residual)
    ours = EncoderDecoder(host)
    assert list(ours.state_dict()) == list(host.state_dict())
    image = random_step(ours, 1, 2).images["labeled"].float()
    assert all(torch.equal(a, b) for a, b in zip(ours(image), host(image), strict=True))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_feature_shapes_are_those_of_the_encoder(residual, dimensions):
    network = EncoderDecoder(host_network(dimensions, 2, residual))
    image = random_step(network, 3, 2).images["labeled"].float()
    assert network.feature_shapes(3, image.shape[2:]) == [tuple(f.shape) for f in network.encoder(image)]


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_labeled_output_has_the_form_that_the_hosts_loss_expects(deep_supervision):
    network = EncoderDecoder(host_network(2, 2, deep_supervision=deep_supervision)).double()
    step = random_step(network, 3, 2)
    labeled = network(step.images, mode="stacked", drawn=step.drawn, **ROLES).labeled
    own = network(step.images["labeled"])
    assert isinstance(labeled, list) == isinstance(own, list) == deep_supervision
    for head, expected in zip(
        labeled if deep_supervision else [labeled], own if deep_supervision else [own], strict=True
    ):
        assert torch.allclose(head, expected, rtol=0, atol=1e-12)


def test_lower_heads_see_labeled_rows_only():
    network = EncoderDecoder(host_network(2, 2)).double()
    step, seen = random_step(network, 3, 2), []
    for head in network.decoder.seg_layers[:-1]:
        head.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    network(step.images, mode="stacked", drawn=step.drawn, **ROLES)
    assert seen == [3]


def test_a_network_without_encoder_and_decoder_is_refused_in_one_line():
    with pytest.raises(UnsupportedError, match=r"Linear has no U-Net encoder and decoder.*Fix: ") as raised:
        EncoderDecoder(nn.Linear(2, 2))
    assert "\n" not in str(raised.value)


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="mode must be"):
        EncoderDecoder(host_network(2, 2))(torch.zeros(1, 1, 16, 16), mode="stack")


@pytest.mark.parametrize(
    ("backend", "device", "tolerance"),
    [
        ("aot_eager", "cpu", 1e-5),
        pytest.param("inductor", "cuda", 1e-3, marks=[pytest.mark.gpu, NEEDS_GPU]),
    ],
)
def test_compiled_steps_equal_eager_ones_and_are_compiled_once(backend, device, tolerance):
    """Fresh masks every step must not recompile; aot_eager is the compiler's front end without its code generator."""
    torch.manual_seed(0)
    network = EncoderDecoder(host_network(2, 2)).to(device)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(network, backend=counter)
    counts = []
    for seed in range(4):
        step = random_step(network, 2, 2, seed).to(device)
        results = []
        for net in (compiled, network):
            network.zero_grad()
            streams = net(step.images, mode="stacked", drawn=step.drawn, **ROLES).streams
            sum(streams[name].square().mean() for name in ROLES["students"]).backward()
            held = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
            results.append((streams, torch.cat([grad.flatten() for grad in held])))
        (fast, fast_gradient), (slow, slow_gradient) = results
        for name in slow:
            assert torch.allclose(fast[name], slow[name], atol=tolerance), name
        assert (fast_gradient - slow_gradient).norm() < tolerance * slow_gradient.norm()
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts == [counts[0]] * 4


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", ["linear", "nearest"])
def test_upsampling_has_shape_and_bias_of_the_transposed_convolution_in_its_place(way, bias):
    transposed = nn.ConvTranspose3d(4, 2, (1, 2, 2), stride=(1, 2, 2), bias=bias)
    other, features = upsampling(transposed, way), torch.randn(1, 4, 3, 4, 5)
    assert other(features).shape == transposed(features).shape
    assert (other[-1].bias is not None) == bias
