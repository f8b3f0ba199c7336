"""BCP, bidirectional copy-paste (Bai et al., CVPR 2023): labeled and unlabeled images pasted into each other.

A box of a labeled image is replaced by that of an unlabeled one, and the other way round; the unlabeled part learns the
labels of a moving average. Limit: what is particular to it; the moving average is in ``consistency``.
Shapes: n pairs of a labeled and an unlabeled image, C channels, S spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.learning.cutmix import Box
from nnunetv2_crossmatch.learning.joint import resized
from nnunetv2_crossmatch.learning.losses import Criterion, dice_classes
from nnunetv2_crossmatch.learning.network import full_resolution
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, label_of, probabilities, reference_label
from nnunetv2_crossmatch.learning.shapes import largest_components
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK
from nnunetv2_crossmatch.methods.consistency import ConsistencySettings, Parts, TeacherMethod
from nnunetv2_crossmatch.methods.method import Passes, Values
from nnunetv2_crossmatch.methods.settings import redefined, setting, switch

PAPER = "BCP (CVPR 2023)"
EDGE = 2 / 3  # of the box, in edges of the patch


@dataclass(frozen=True)
class BCPSettings(ConsistencySettings):
    """All settings of a BCP run."""

    trainer: ClassVar[str] = "nnUNetTrainerBCP"

    unsupervised: float = redefined(ConsistencySettings, "unsupervised", 0.5, PAPER)
    warmup: float = redefined(ConsistencySettings, "warmup", 0.0, PAPER)
    ema: float = setting(0.99, "ema", "share of the teacher's weights that stays in a step", PAPER, low=0, high=1)
    pretrain: float = setting(
        0.25,
        "pretrain",
        "part of the run, at its beginning, that learns from labeled images pasted into each other",
        f"{PAPER}, ACDC",
        low=0,
        high=1,
    )
    largest: int = switch(
        "largest", "1: of every class of a pseudo-label the largest component counts; 0: all do", PAPER, default=1
    )


class BCP(TeacherMethod):
    """Two stages: labeled images pasted into each other, then labeled and unlabeled ones."""

    Settings = BCPSettings
    settings: BCPSettings
    summary = "labeled and unlabeled images pasted into each other, with labels of a moving average"
    presets: ClassVar = {
        # The authors' released code: 2000 + 15 000 iterations, batch 4 + 4.
        "LA": {"epochs": 68, "optimizer": "sgd", "batch": 4, "unlabeled_batch": 4, "pretrain": 0.118},
        # 10 000 + 30 000 iterations, batch 12 + 12.
        "ACDC": {"epochs": 160, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12},
    }

    @classmethod
    def problems(cls, settings: Any, task: Task) -> list[Problem]:
        """As inherited, and batches of one image, which has no partner to paste in either direction."""
        problems = super().problems(settings, task)
        if 1 in (settings.batch, settings.unlabeled_batch):
            detail = "BCP pastes in both directions, which takes two labeled and two unlabeled images"
            problems.append(
                Problem("batch too small", settings.trainer_name, detail, "use batch2 and ubatch2, or more")
            )
        return problems

    def losses(self, step: Step) -> Values:
        """Of the stage that the step is in."""
        return self.first_stage(step) if self.in_first_stage(step) else super().losses(step)

    def in_first_stage(self, step: Step) -> bool:
        """Whether the step learns from labeled images only."""
        return step.progress < self.settings.labeled_only + self.settings.pretrain

    def kept_at(self, step: Step) -> float:
        """The teacher begins the second stage with the network's weights."""
        return 0.0 if self.in_first_stage(step) else self.settings.ema

    def first_stage(self, step: Step) -> Values:
        """nnU-Net's loss of labeled images, each with a box of the next one."""
        inside = self.inside(step)

        def mixed(tensor: torch.Tensor) -> torch.Tensor:
            return torch.where(inside, tensor.roll(-1, 0), tensor)

        target: Any = mixed(step.full_target)
        if isinstance(step.target, list):
            target = [resized(target, scale) for scale in step.target]
        with step.autocast():
            loss = step.supervised_loss(step.network(mixed(step.images[LABELED])), target)
        return {"loss": loss, "loss_sup": loss, "unsup_weight": 0.0}

    def parts(self, step: Step) -> Parts:
        """Cross-entropy and Dice of the labeled and of the unlabeled part of the mixed images, at every scale."""
        probability = self.teacher(step)
        unlabeled, inward = self.unlabeled_part(step)
        pairs = torch.arange(len(inward), device=inward.device)
        labeled_of, unlabeled_of = (pairs % len(step.images[view]) for view in (LABELED, WEAK))
        images = torch.where(unlabeled, step.images[WEAK][unlabeled_of], step.images[LABELED][labeled_of])
        label = self.mixed_label(step, probability, unlabeled, labeled_of, unlabeled_of)
        output = step.network(images)
        heads = output if isinstance(output, list) else [output]
        losses = [weight * self.of_head(head, label, unlabeled, inward, step) for weight, head in weighted(heads)]
        supervised, unsupervised = torch.stack(losses).sum(0)
        return Parts({"sup": supervised}, unsupervised, probability)

    @torch.no_grad()
    def teacher(self, step: Step) -> torch.Tensor:
        """Probabilities (U, C, S) of the moving average."""
        return probabilities(full_resolution(self.average(step.images[WEAK])), self.task.regions)

    def unlabeled_part(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxels (n, 1, S) that come from the unlabeled image, and the pairs (n, 1, ...) where these are the box.

        Every other pair is inward, counted over all processes.
        """
        pairs = max(len(step.images[LABELED]), len(step.images[WEAK]))
        inside = self.inside(step)
        number = torch.arange(pairs, device=inside.device) + step.rank * pairs
        inward = (number % 2 == 0).view(-1, *[1] * (inside.ndim + 1))
        return inside == inward, inward

    def inside(self, step: Step) -> torch.Tensor:
        """The voxels (S) of a step's box."""
        images = step.images[WEAK]
        inside = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
        inside[self.draw_box(step)] = True
        return inside

    def draw_box(self, step: Step) -> Box:
        """One box for all images of all processes."""
        size = np.asarray(step.images[WEAK].shape[2:])
        edges = np.maximum((size * EDGE).astype(int), 1)
        start = step.shared_rng.integers(0, size - edges + 1)
        return tuple(slice(int(a), int(a + b)) for a, b in zip(start, edges, strict=True))

    def mixed_label(
        self, step: Step, probability: torch.Tensor, unlabeled: torch.Tensor, labeled_of: Any, unlabeled_of: Any
    ) -> PseudoLabel:
        """Labels of the mixed images; not valid where the labeled image is ignored."""
        guess = label_of(probability, 0.0, self.task.regions)
        if self.settings.largest:
            guess = guess._replace(labels=largest_components(guess.labels, self.task.channels))
        known = reference_label(step.full_target, self.task.channels, self.task.regions)
        where = unlabeled if self.task.regions else unlabeled[:, 0]
        fields = zip(guess[:3], known[:3], strict=True)
        return PseudoLabel(*(torch.where(where, a[unlabeled_of], b[labeled_of]) for a, b in fields))

    def of_head(
        self, logits: torch.Tensor, label: PseudoLabel, unlabeled: torch.Tensor, inward: torch.Tensor, step: Step
    ) -> torch.Tensor:
        """Losses (2) of the labeled and of the unlabeled part: half of those of inward pairs, half of the others."""
        regions = self.task.regions
        labels, valid, unlabeled = (at_scale(each, logits) for each in (label.labels, label.valid, unlabeled))
        masks = [valid & part & way for part in (~unlabeled, unlabeled) for way in (inward, ~inward)]
        fields = [(labels, mask) if regions else (labels[:, 0], mask[:, 0]) for mask in masks]
        targets = [PseudoLabel(wanted, mask, mask) for wanted, mask in fields]
        classes = dice_classes("auto", self.task.channels, regions)
        criterion = Criterion(regions, classes, cross_entropy=True, distributed=step.distributed)
        return torch.stack(criterion.each(logits, targets)).view(2, 2).mean(1)

    def passes(self) -> Passes:
        """Of the second stage; in the first one a supervised step's."""
        return Passes(1, 1, 1, 1)


def at_scale(values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``values`` (n, S) or (n, C, S) at the resolution of ``logits``, with an axis of channels."""
    values = values if values.ndim == logits.ndim else values[:, None]
    return resized(values, logits).to(values.dtype)


def weighted(heads: list[torch.Tensor]) -> list[tuple[float, torch.Tensor]]:
    """Heads and their weights as in nnU-Net: half for each lower one, none for the lowest."""
    used = heads[:-1] or heads
    weights = [0.5**scale for scale in range(len(used))]
    return [(weight / sum(weights), head) for weight, head in zip(weights, used, strict=True)]
