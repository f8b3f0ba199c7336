"""SS-Net (Wu et al., MICCAI 2022): predictions stay under the worst small noise, and voxels of a class look alike.

Limit: the bank of features is that of the step, a class without right voxels in it teaches nothing.
Shapes: N images, C channels, S spatial axes, K kinds, V voxels; as in ``learning.voxels``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import normalize

from nnunetv2_crossmatch.learning.consistency import deviation, of_size_one, soft_dice, worst_direction
from nnunetv2_crossmatch.learning.exchange import gathered, joined_sum
from nnunetv2_crossmatch.learning.losses import dice_classes
from nnunetv2_crossmatch.learning.pseudo_labels import distribution, in_float, label_of, reference_label
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK
from nnunetv2_crossmatch.learning.voxels import WIDTH, Voxels, best, chosen, masks_by_kind, perceptron, shares
from nnunetv2_crossmatch.methods.consistency import ConsistencyMethod, ConsistencySettings, Parts
from nnunetv2_crossmatch.methods.method import Optimizer, Passes
from nnunetv2_crossmatch.methods.settings import redefined, setting

PAPER = "SS-Net (MICCAI 2022)"
VOXELS = 4096  # of a class that learn in a step, as many of labeled and of unlabeled images
BANK = 32  # of a class; the authors' released code


@dataclass(frozen=True)
class SSNetSettings(ConsistencySettings):
    """All settings of an SS-Net run."""

    trainer: ClassVar[str] = "nnUNetTrainerSSNet"

    unsupervised: float = redefined(ConsistencySettings, "unsupervised", 0.1, f"{PAPER}, ACDC")
    noise: float = setting(
        0.0234,
        "noise",
        "root mean square of the worst noise over the voxels, in the deviation of the image itself",
        f"{PAPER}, ACDC: a norm of 6 in 256 x 256; relative: ours",
        low=0,
    )
    contrast: float = setting(0.1, "contrast", "weight of the voxels' distances beside the noise's", PAPER, low=0)


class SSNet(ConsistencyMethod):
    """The direction of the worst noise by one more gradient, and small networks that read features."""

    Settings = SSNetSettings
    settings: SSNetSettings
    summary = "predictions stay under the worst small noise, and voxels of a class have features alike"
    presets: ClassVar = {
        # The authors' released code: 15 000 iterations, batch 2 + 2, risen at 6000; a norm of 10 in 112 x 112 x 80.
        "LA": {
            "epochs": 60,
            "optimizer": "sgd",
            "batch": 2,
            "unlabeled_batch": 2,
            "unsupervised": 1.0,
            "warmup": 0.4,
            "noise": 0.01,
        },
        # 30 000 iterations, batch 12 + 12.
        "ACDC": {"epochs": 120, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12},
    }

    def build(self, network: Any, another: Callable[[], nn.Module]) -> None:
        """Add projection, prediction, and for each kind how much a voxel, and one of the bank, counts."""
        self.projection = perceptron(network.decoder.seg_layers[-1].in_channels)
        self.prediction = perceptron(WIDTH)
        self.of_voxel, self.of_bank = (
            nn.ModuleList(perceptron(WIDTH, 1) for _ in range(self.task.channels)) for _ in range(2)
        )

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """One optimizer of them all."""
        return [default(self)]

    def parts(self, step: Step) -> Parts:
        """The host's loss; the change under noise of all images, and the distances of their voxels."""
        labeled = len(step.images[LABELED])
        images = torch.cat([step.images[LABELED], step.images[WEAK]])
        heads, last = step.network(images, mode="heads_and_last", labeled_rows=labeled)
        probability = distribution(heads[0], self.task.regions)
        changed = self.change_under_noise(images, probability.detach(), step)
        apart = self.settings.contrast * self.apart(last, probability.detach(), step)
        supervised = {"sup": step.supervised(step.network.for_host([heads[0][:labeled], *heads[1:]]))}
        return Parts(supervised, changed + apart, probability[labeled:])

    def change_under_noise(self, images: torch.Tensor, constant: torch.Tensor, step: Step) -> torch.Tensor:
        """Distance of the predictions of noisy ``images`` (N, C, S) from ``constant``, in the worst direction."""
        size = self.settings.noise * deviation(images)
        first = torch.cat(self.draw_directions(step)).requires_grad_()
        distance = self.distance(images + size * first, constant, step)
        (gradient,) = torch.autograd.grad(step.scale(distance), first)
        return self.distance(images + size * worst_direction(gradient, first.detach()), constant, step)

    def draw_directions(self, step: Step) -> list[torch.Tensor]:
        """Where to begin: uniform noise of size 1 for labeled and for unlabeled images."""
        options: dict[str, Any] = {"generator": step.generator, "device": step.images[WEAK].device}
        views = [step.images[LABELED], step.images[WEAK]]
        return [of_size_one(torch.rand(view.shape, dtype=view.dtype, **options) - 0.5) for view in views]

    def distance(self, images: torch.Tensor, constant: torch.Tensor, step: Step) -> torch.Tensor:
        """Soft Dice of the predictions of ``images`` and ``constant`` probabilities."""
        heads, _ = step.network(images, mode="heads_and_last", labeled_rows=0)
        regions, channels = self.task.regions, self.task.channels
        classes = dice_classes("auto", channels, regions)
        return soft_dice(distribution(heads[0], regions), constant, classes, step.distributed)

    def apart(self, last: torch.Tensor, probability: torch.Tensor, step: Step) -> torch.Tensor:
        """How far voxels of labeled and of unlabeled images are from the bank of their kind."""
        labeled, channels, regions = len(step.images[LABELED]), self.task.channels, self.task.regions
        found = masks_by_kind(label_of(probability, 0.0, regions), channels)
        right = found[:labeled] & masks_by_kind(reference_label(step.full_target, channels, regions), channels)
        scores = torch.rand(found[:, :1].shape, generator=step.generator, device=found.device)
        parts = [
            self.projected(last[:labeled], right, scores[:labeled]),
            self.projected(last[labeled:], found[labeled:], scores[labeled:]),
        ]
        bank = self.bank(parts[0], step.distributed)
        return torch.stack([self.from_bank(part, bank, step.distributed) for part in parts]).sum()

    def projected(self, last: torch.Tensor, masks: torch.Tensor, scores: torch.Tensor) -> Voxels:
        """Voxels in ``masks``, drawn by their ``scores``."""
        voxels = chosen(last, masks, scores, VOXELS)
        return voxels._replace(rows=self.projection(voxels.rows))

    @torch.no_grad()
    def bank(self, voxels: Voxels, distributed: bool) -> Voxels:
        """The voxels of each kind, of all processes, that count most."""
        rows = in_float(voxels.rows)
        own = best(voxels._replace(rows=rows), shares(self.of_bank, rows), BANK)
        every = Voxels(gathered(own.rows, distributed, 1), gathered(own.real.to(torch.uint8), distributed, 1).bool())
        return best(every, shares(self.of_bank, every.rows), BANK)

    def from_bank(self, voxels: Voxels, bank: Voxels, distributed: bool) -> torch.Tensor:
        """Mean over the kinds of 1 - cosine of predicted voxels and their bank, by how much each of both counts."""
        # Weighted by a product, the mean over all pairs is one of two sums: no matrix of pairs is kept for gradients.
        rows = self.prediction(voxels.rows)
        of_voxels, of_bank = shares(self.of_voxel, rows) * voxels.real, shares(self.of_bank, bank.rows) * bank.real
        weights = of_voxels.sum(1) * of_bank.sum(1)
        alike = (summed_direction(rows, of_voxels) * summed_direction(bank.rows, of_bank)).sum(1)
        total, count = joined_sum(torch.stack([weights - alike, weights]), distributed)
        return (total / count.clamp(min=1e-8)).mean()

    def passes(self) -> Passes:
        """All images three times: as they are, with noise, and with the worst noise."""
        return Passes(6, 0, 6, 0)


def summed_direction(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over voxels of ``rows`` (K, V, width) of length 1, each times its weight (K, V); (K, width) in float32."""
    return (normalize(in_float(rows), dim=-1) * weights[..., None]).sum(1)
