"""Small networks and random steps that several tests share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunetv2_crossmatch.learning import execution
from nnunetv2_crossmatch.learning.cutmix import draw_boxes
from nnunetv2_crossmatch.learning.losses import Criterion
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout, Perturbation, ValueMask
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, label_of, probabilities
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import StreamTable
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss
from nnunetv2_crossmatch.methods.crossmatch import STREAMS, loss_table

STRIDES = {2: [(1, 1), (2, 2), (2, 2)], 3: [(1, 1, 1), (1, 2, 2), (2, 2, 2)]}
PATCH = {2: (16, 16), 3: (6, 12, 12)}


def host_network(dimensions: int, channels: int, residual: bool = False, deep_supervision: bool = True) -> nn.Module:
    """A three-stage U-Net of the host, anisotropic in 3d, with the host's initialization."""
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dimensions == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    blocks = {"n_blocks_per_stage": 1} if residual else {"n_conv_per_stage": 1}
    network = (ResidualEncoderUNet if residual else PlainConvUNet)(
        input_channels=1, n_stages=3, features_per_stage=[4, 6, 8], conv_op=conv, kernel_sizes=3,
        strides=STRIDES[dimensions], num_classes=channels, n_conv_per_stage_decoder=1, conv_bias=True, norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision, **blocks,
    )  # fmt: skip
    network.apply(network.initialize)
    return network


@dataclass
class RandomStep:
    """Everything that one step needs, drawn at random, in float64."""

    images: dict[str, torch.Tensor]
    boxes: dict[str, list]
    drawn: dict[str, list]

    def to(self, device: str) -> RandomStep:
        """The same in float32 on ``device``."""
        images = {view: image.to(device, torch.float32) for view, image in self.images.items()}
        drawn = {
            name: [p and p._replace(scale=p.scale.to(device, torch.float32)) for p in levels]
            for name, levels in self.drawn.items()
        }
        return RandomStep(images, self.boxes, drawn)


def random_step(
    network: EncoderDecoder, labeled: int, unlabeled: int, seed: int = 0, kind: str = "channel", levels: str = "all"
) -> RandomStep:
    dimensions = (
        2 if isinstance(next(m for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)), nn.Conv2d) else 3
    )
    patch, generator, rng = PATCH[dimensions], torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    rows = {"labeled": labeled, "weak": unlabeled, "strong1": unlabeled, "strong2": unlabeled}
    images = {view: torch.randn(n, 1, *patch, generator=generator, dtype=torch.float64) for view, n in rows.items()}
    boxes = {view: draw_boxes(rng, unlabeled, patch, 0.7) for view in ("strong1", "strong2")}
    shapes = network.feature_shapes(unlabeled, patch)
    dropouts = {name: FeatureDropout(rate, kind, levels) for name, rate in (("weak", 0.25), ("strong", 0.75))}
    drawn = {
        name: [p and in_double(p) for p in perturbation]
        for name, stream in STREAMS.items()
        if stream.perturbation is not None
        for perturbation in [dropouts[stream.perturbation].draw(shapes, generator, torch.device("cpu"))]
    }
    return RandomStep(images, boxes, drawn)


def in_double(drawn: Perturbation | ValueMask) -> Perturbation | ValueMask:
    if isinstance(drawn, ValueMask):
        return drawn
    return Perturbation(drawn.scale.double(), None if drawn.shift is None else drawn.shift.double())


def run_step(
    network: nn.Module, drawn: RandomStep, way: str, loss: UnsupervisedLoss, weight: float = 0.5, **options: object
) -> torch.Tensor:
    """Gradients of one step ``stacked`` or ``sequential``; returns the supervised loss."""
    task = Task(len(loss.criterion.classes))
    images = execution.with_boxes(drawn.images, drawn.boxes)
    step = Step(network, images, None, task, supervised_loss, weight=weight, **options)
    return getattr(execution, f"run_{way}")(step, drawn.drawn, loss)


def unsupervised_loss(
    step: RandomStep, criterion: Criterion, tau: float = 0.5, table: StreamTable | None = None
) -> UnsupervisedLoss:
    label = partial(label_of, tau=tau, regions=criterion.regions)
    return UnsupervisedLoss(table or loss_table(0.3), criterion, label, step.boxes)


def pseudo_label(logits: torch.Tensor, tau: float, regions: bool) -> PseudoLabel:
    return label_of(probabilities(logits, regions), tau, regions)


def supervised_loss(output: torch.Tensor | list[torch.Tensor], target: object = None) -> torch.Tensor:
    """Any loss that every head and row enters; weights fall as the host's do."""
    heads = output if isinstance(output, list) else [output]
    return sum(0.5**i * (head - head.detach().mean() - 0.3).square().mean() for i, head in enumerate(heads))


def gradient(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])
