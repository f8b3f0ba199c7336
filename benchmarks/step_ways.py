"""Networks of benchmarks/step.py, and one training step each: supervised, CrossMatch, the authors' released schedule.

Limit: runs steps on random tensors; ``step.py`` measures them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.backends import cudnn

from nnunetv2_crossmatch.learning import execution
from nnunetv2_crossmatch.learning.cutmix import draw_boxes
from nnunetv2_crossmatch.learning.losses import Criterion
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout, perturbed
from nnunetv2_crossmatch.learning.pseudo_labels import label_of, probabilities
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss
from nnunetv2_crossmatch.methods.crossmatch import STREAMS, CrossMatch, loss_table
from nnunetv2_crossmatch.training.requirements import prepare_compiler

CHANNELS = 4  # output classes
DROPOUTS = {"weak": FeatureDropout(0.25), "strong": FeatureDropout(0.75)}
WAYS = ("supervised", "stacked", "sequential", "released")
EXTRA_WAYS = (
    "stacked_recompute", "sequential_recompute", "stacked_students1", "stacked_students2", "stacked_students3",
    "stacked_half",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkCase:
    """A network, a patch size and a batch size."""

    name: str
    patch: tuple[int, ...]
    batch: int
    features: tuple[int, ...]
    plans: str | None = None
    configuration: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, batch {self.batch}"

    def network(self) -> nn.Module:
        """nnU-Net's network with deep supervision, wrapped in :class:`CrossMatchNetwork`."""
        if self.plans is not None:
            manager = PlansManager(self.plans).get_configuration(self.configuration)
            architecture = manager.network_arch_class_name, manager.network_arch_init_kwargs
            imports = manager.network_arch_init_kwargs_req_import
            host = get_network_from_plans(*architecture, imports, 1, CHANNELS, deep_supervision=True)
        else:
            conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if len(self.patch) == 2 else (nn.Conv3d, nn.InstanceNorm3d)
            stages = len(self.features)
            host = PlainConvUNet(
                1, stages, self.features, conv, 3, [1] + [2] * (stages - 1), 2, CHANNELS, 2, True, norm,
                {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True}, deep_supervision=True,
            )  # fmt: skip
        return EncoderDecoder(host)


GENERIC = (
    BenchmarkCase("2d 256 x 256", (256, 256), 12, (32, 64, 128, 256, 512)),
    BenchmarkCase("2d 256 x 256 in seven stages as nnU-Net plans", (256, 256), 12, (32, 64, 128, 256, 512, 512, 512)),
    BenchmarkCase("3d 112 x 112 x 80", (112, 112, 80), 2, (32, 64, 128, 256, 320)),
)
SMALL = (
    BenchmarkCase("2d 128 x 128", (128, 128), 4, (16, 32, 64, 128)),
    BenchmarkCase("3d 48 x 48 x 32", (48, 48, 32), 2, (16, 32, 64, 128)),
)


def case_from_plans(plans: str, configuration: str) -> BenchmarkCase:
    """Network, patch size and batch size of a plans file; the batch size is at least two, as in CrossMatch."""
    chosen = PlansManager(plans).get_configuration(configuration)
    patch = tuple(chosen.patch_size)
    name = f"{configuration} {' x '.join(map(str, patch))}"
    return BenchmarkCase(name, patch, max(chosen.batch_size, 2), (), plans, configuration)


class StepBenchmark:
    """Network, optimizer and random images of one case on one device; runs steps of each way as a training would.

    Args:
        case: network and sizes.
        device: where.
        amp: mixed precision: float16 with a gradient scaler on a GPU, bfloat16 elsewhere.
        compiled: network and Dice of the supervised loss compiled, as nnU-Net does it.
        backend: of the compiler.
        channels_last: weights and images in this layout.
    """

    def __init__(
        self,
        case: BenchmarkCase,
        device: torch.device,
        amp: bool,
        compiled: bool,
        backend: str | Callable[..., Any] = "inductor",
        channels_last: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        cudnn.benchmark = True  # nnU-Net's training command sets it
        layout = {"memory_format": layout_of(case)} if channels_last else {}
        with device:
            self.uncompiled_network = case.network()
        if channels_last:
            self.uncompiled_network.to(**layout)
        compile_, self.network = partial(torch.compile, backend=backend), self.uncompiled_network
        if compiled:
            torch._dynamo.reset()  # variants of cases before would count
            prepare_compiler()
            self.network = compile_(self.uncompiled_network)
        self.optimizer = torch.optim.SGD(self.uncompiled_network.parameters(), 0.01, momentum=0.99, nesterov=True)
        self.scaler = torch.GradScaler(device.type, enabled=amp)
        self.autocast = partial(torch.autocast, device.type, cache_enabled=False) if amp else nullcontext
        self.images = {
            v: torch.randn(case.batch, 1, *case.patch, device=device).contiguous(**layout)
            for v in ("labeled", *CrossMatch.unlabeled_views)
        }
        with torch.no_grad():
            heads = self.uncompiled_network(self.images["labeled"])
        self.target = [torch.randint(0, CHANNELS, (h.shape[0], 1, *h.shape[2:]), device=device) for h in heads]
        self.loss = nnunet_loss(np.array([0.5**i for i in range(len(heads))]), compile_ if compiled else None)
        self.count = 0

    def draw_random(self, unlabeled: int) -> tuple[dict, dict]:
        self.count += 1
        rng, generator = np.random.default_rng(self.count), torch.Generator(self.device).manual_seed(self.count)
        boxes = {view: draw_boxes(rng, unlabeled, self.case.patch, 0.5) for view in CrossMatch.unlabeled_views[1:]}
        shapes = self.uncompiled_network.feature_shapes(unlabeled, self.case.patch)
        kinds = {name: s.perturbation for name, s in STREAMS.items() if s.perturbation}
        drawn = {name: DROPOUTS[kind].draw(shapes, generator, self.device) for name, kind in kinds.items()}
        return boxes, drawn

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def run_step(self, way: str) -> None:
        """One training step: random draws, forward, backward, clipping, optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        if way == "supervised":
            self.supervised()
        elif way == "released":
            self.released()
        else:
            self.crossmatch(*way.split("_"))
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.uncompiled_network.parameters(), 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def supervised(self) -> None:
        with self.autocast():
            loss = self.loss(self.network(self.images["labeled"]), self.target)
        self.backward(loss)

    def crossmatch(self, way: str, setting: str = "") -> None:
        """One step stacked or sequential, with ``recompute``, ``students<k>`` or ``half`` as many unlabeled samples."""
        self.uncompiled_network.recompute = setting == "recompute"
        count = int(setting.removeprefix("students")) if setting.startswith("students") else len(STREAMS)
        unlabeled = max(1, self.case.batch // (2 if setting == "half" else 1))
        boxes, drawn = self.draw_random(unlabeled)
        images = {view: image if view == "labeled" else image[:unlabeled] for view, image in self.images.items()}
        table = loss_table(0.3).drawn(count, np.random.default_rng(self.count))
        criterion = Criterion(False, tuple(range(CHANNELS)), compiled=self.network is not self.uncompiled_network)
        loss = UnsupervisedLoss(table, criterion, partial(label_of, tau=0.5, regions=False), boxes)
        step = Step(
            self.network, execution.with_boxes(images, boxes), self.target, Task(CHANNELS), self.loss, weight=0.5,
            scale=self.scaler.scale, autocast=self.autocast,
        )  # fmt: skip
        getattr(execution, f"run_{way}")(step, drawn, loss)

    def released(self) -> None:
        """The passes of the authors' released training loop, with this network and the losses of this package.

        A second unlabeled batch, used for CutMix only, is passed without gradient: once alone, once with the labeled
        batch and both perturbations. Two passes with gradient follow; each decodes two halves without perturbation and
        the second half with both perturbations.
        """
        _, drawn = self.draw_random(self.case.batch)
        criterion = Criterion(False, tuple(range(CHANNELS)))
        labeled, weak, first, second = self.images.values()
        with self.autocast(), torch.no_grad():
            self.network(second)
            self.forward_two_halves(labeled, second, drawn, "ww", "ws")
        with self.autocast():
            heads, p_wn, p_ww, p_ws = self.forward_two_halves(labeled, weak, drawn, "ww", "ws")
            p_s1, p_s2, p_sw, p_ss = self.forward_two_halves(first, second, drawn, "sw", "ss")
            y_wn, y_ww, y_ws = (label_of(probabilities(p, False), 0.5, False) for p in (p_wn, p_ww, p_ws))
            pairs = [(p, y_wn) for p in (p_s1[0], p_s2, p_ww, p_ws, p_sw, p_ss)] + [(p_sw, y_ww), (p_ss, y_ws)]
            loss = self.loss(heads, self.target) + sum(criterion(p, y) for p, y in pairs)
        self.backward(loss)

    def forward_two_halves(self, a: torch.Tensor, b: torch.Tensor, drawn: dict, weak: str, strong: str) -> tuple:
        features = self.uncompiled_network.encoder(torch.cat((a, b)))
        half = [level[len(a) :] for level in features]
        streams = [features] + [perturbed(half, drawn[name]) for name in (weak, strong)]
        heads = self.uncompiled_network.decoder([torch.cat(level) for level in zip(*streams, strict=True)])
        full = heads[0].split(len(a))
        return [full[0], *(head[: len(a)] for head in heads[1:])], *full[1:]


def layout_of(case: BenchmarkCase) -> torch.memory_format:
    return torch.channels_last if len(case.patch) == 2 else torch.channels_last_3d


def nnunet_loss(weights: np.ndarray, compile_: Callable[[nn.Module], Any] | None = None) -> nn.Module:
    """nnU-Net's Dice and cross-entropy loss over all heads; as in nnU-Net, the Dice alone is compiled, if anything."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    if compile_ is not None:
        loss.dc = compile_(loss.dc)
    return DeepSupervisionWrapper(loss, weights / weights.sum())
