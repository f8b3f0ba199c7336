"""BCP, bidirectional copy-paste (Bai et al., CVPR 2023): labeled and unlabeled images pasted into each other.

A box of a labeled image is replaced by that of an unlabeled one, and the other way round; the unlabeled part learns the
labels of a moving average. Limit: what is particular to it; the moving average is in ``consistency``, the mixed images
in ``learning.copy_paste``. Shapes: U unlabeled images, C channels, S spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.learning.copy_paste import Mixture, at_scale, draw_box, mixture, weighted
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
        probability, mixed = self.teacher(step), self.mixture(step)
        label = self.mixed_label(step, probability, mixed)
        output = step.network(mixed.of(step.images[LABELED], step.images[WEAK]))
        heads = output if isinstance(output, list) else [output]
        losses = [weight * self.of_head(head, label, mixed, step.distributed) for weight, head in weighted(heads)]
        supervised, unsupervised = torch.stack(losses).sum(0)
        return Parts({"sup": supervised}, unsupervised, probability)

    @torch.no_grad()
    def teacher(self, step: Step) -> torch.Tensor:
        """Probabilities (U, C, S) of the moving average."""
        return probabilities(full_resolution(self.average(step.images[WEAK])), self.task.regions)

    def mixture(self, step: Step) -> Mixture:
        """As many pairs as there are labeled or unlabeled images; numbers count on over the processes."""
        pairs = max(len(step.images[LABELED]), len(step.images[WEAK]))
        return mixture(self.inside(step), pairs, step.rank * pairs)

    def inside(self, step: Step) -> torch.Tensor:
        """The voxels (S) of a step's box."""
        images = step.images[WEAK]
        inside = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
        inside[self.draw_box(step)] = True
        return inside

    def draw_box(self, step: Step) -> Box:
        """One box for all images of all processes."""
        return draw_box(step.shared_rng, step.images[WEAK].shape[2:])

    def mixed_label(self, step: Step, probability: torch.Tensor, mixed: Mixture) -> PseudoLabel:
        """Labels of the mixed images; not valid where the labeled image is ignored."""
        guess = label_of(probability, 0.0, self.task.regions)
        if self.settings.largest:
            guess = guess._replace(labels=largest_components(guess.labels, self.task.channels))
        known = reference_label(step.full_target, self.task.channels, self.task.regions)
        return PseudoLabel(*(mixed.of(b, a) for a, b in zip(guess[:3], known[:3], strict=True)))

    def of_head(self, logits: torch.Tensor, label: PseudoLabel, mixed: Mixture, distributed: bool) -> torch.Tensor:
        """Losses (2) of the labeled and of the unlabeled part: half of those of inward pairs, half of the others."""
        regions, ways = self.task.regions, (mixed.inward, ~mixed.inward)
        labels, valid, unlabeled = (at_scale(each, logits) for each in (label.labels, label.valid, mixed.unlabeled))
        masks = [valid & part & way for part in (~unlabeled, unlabeled) for way in ways]
        fields = [(labels, mask) if regions else (labels[:, 0], mask[:, 0]) for mask in masks]
        targets = [PseudoLabel(wanted, mask, mask) for wanted, mask in fields]
        classes = dice_classes("auto", self.task.channels, regions)
        criterion = Criterion(regions, classes, cross_entropy=True, distributed=distributed)
        return torch.stack(criterion.each(logits, targets)).view(2, 2).mean(1)

    def passes(self) -> Passes:
        """Of the second stage; in the first one a supervised step's."""
        return Passes(1, 1, 1, 1)
