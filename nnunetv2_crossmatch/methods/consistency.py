"""Base of the methods that ask predictions of unlabeled images to agree: of two networks, scales, decoders or tasks.

L = the supervised losses + u * one unsupervised loss, where u rises as a Gaussian over part of the run. Limit: the
frame of a step; the files of the methods say what has to agree. Shapes: as in ``learning.consistency``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.learning import consistency
from nnunetv2_crossmatch.learning.consistency import gaussian_ramp
from nnunetv2_crossmatch.learning.moving_average import update_average
from nnunetv2_crossmatch.learning.network import StackedOutput
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout, Perturbation, ValueMask
from nnunetv2_crossmatch.learning.pseudo_labels import label_of
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK
from nnunetv2_crossmatch.methods.method import Method, Values
from nnunetv2_crossmatch.methods.settings import CommonSettings, redefined, setting

SSL4MIS = "SSL4MIS (released code)"
RISE = "fraction of the run over which u rises from 0; 0: it is whole from the beginning"


@dataclass(frozen=True)
class ConsistencySettings(CommonSettings):
    """Settings of the unsupervised weight; 0.1 beside half of cross-entropy and Dice is 0.2 beside nnU-Net's whole."""

    unsupervised: float = redefined(CommonSettings, "unsupervised", 0.2, SSL4MIS)
    warmup: float = redefined(CommonSettings, "warmup", 1.0, SSL4MIS, RISE)
    ramp: str = setting(
        "gaussian",
        "ramp",
        "how u rises: as exp(-5 (1 - t)^2), t from 0 to 1, or linearly",
        "Laine and Aila (ICLR 2017)",
        choices=("gaussian", "linear"),
    )

    def unsupervised_at(self, progress: float) -> float:
        """Weight u at ``progress`` (0 to 1) of a run."""
        if self.ramp == "linear" or not self.warmup:
            return super().unsupervised_at(progress)
        return self.unsupervised * gaussian_ramp((progress - self.labeled_only) / self.warmup)


def dropout_setting() -> Any:
    """Dropout where the originals had it in their networks, and nnU-Net's has none."""
    meaning = "rate of the channel dropout of the bottleneck's features, of unlabeled images only"
    return setting(0.5, "featdrop", meaning, f"rate: {SSL4MIS}; place: ours", low=0, high=0.99)


class Parts(NamedTuple):
    """Losses of a step, with gradient: ``supervised`` by name, ``sup`` first; and probabilities (U, C, S) to log."""

    supervised: dict[str, torch.Tensor]
    unsupervised: torch.Tensor
    probability: torch.Tensor


class ConsistencyMethod(Method):
    """Base; a method has :meth:`parts`."""

    Settings = ConsistencySettings
    settings: Any

    @classmethod
    def problems(cls, settings: Any, task: Task) -> list[Problem]:
        """Settings of strong views, which these methods have not."""
        if settings.views == "host":
            return []
        detail = f"views{settings.views} changes strong views, and {cls.__name__} has none"
        return [Problem("setting without effect", settings.trainer_name, detail, "leave it out")]

    def parts(self, step: Step) -> Parts:
        """Losses of a step."""
        raise TypeError(f"{type(self).__name__} has no parts")

    def losses(self, step: Step) -> Values:
        """L_sup + weight * L_unsup, and each of them."""
        with step.autocast():
            parts = self.parts(step)
        step.pseudo_labels = label_of(parts.probability.detach(), 0.0, self.task.regions)
        supervised = torch.stack(list(parts.supervised.values())).sum()
        return {
            "loss": supervised + step.weight * parts.unsupervised,
            **{f"loss_{name}": loss for name, loss in parts.supervised.items()},
            "loss_unsup": parts.unsupervised,
            "unsup_weight": step.weight,
        }

    def of_both(
        self,
        network: nn.Module,
        step: Step,
        drawn: list[Perturbation | ValueMask | None] | None = None,
        all_heads: bool = False,
    ) -> StackedOutput:
        """Heads of the labeled images, and logits of the unlabeled ones with features perturbed by ``drawn``.

        ``all_heads``: the heads hold the unlabeled images, too, behind the labeled ones.
        """
        images = {LABELED: step.images[LABELED], WEAK: step.images[WEAK]}
        dropped = {} if drawn is None else {WEAK: drawn}
        roles = {"views": {WEAK: WEAK}, "teachers": (), "students": (WEAK,)}
        return network(images, mode="stacked", drawn=dropped, joint=all_heads, **roles)

    def noisy(self, step: Step) -> torch.Tensor:
        """The unlabeled images with noise that is drawn anew."""
        return consistency.noisy(step.images[WEAK], self.settings.noise, step.generator)

    def draw_dropout(self, step: Step) -> list[Perturbation | ValueMask | None]:
        """Dropout of the features of the unlabeled images."""
        rows, _, *patch_size = step.images[WEAK].shape
        dropout = FeatureDropout(self.settings.feature_dropout, levels="bottleneck")
        return dropout.draw(step.network.feature_shapes(rows, patch_size), step.generator, step.images[WEAK].device)


class TeacherMethod(ConsistencyMethod):
    """Base of the methods whose teacher is a moving average of the network; ``ema`` of it stay in a step."""

    average: nn.Module

    def build(self, network: nn.Module, another: Callable[[], nn.Module]) -> None:
        """Add the moving average."""
        self.average = another().requires_grad_(False)

    def start(self, network: nn.Module) -> None:
        """Begin it with the network's weights."""
        self.average.load_state_dict(network.state_dict())

    def after_step(self, step: Step) -> None:
        """Move it towards the network."""
        update_average(self.average, step.network, self.kept_at(step))

    def kept_at(self, step: Step) -> float:
        """Share that stays: less in the first steps, since the average begins with weights of no worth."""
        return min(1 - 1 / (step.index - self.settings.first_unsupervised + 1), self.settings.ema)
