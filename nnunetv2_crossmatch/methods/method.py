"""What a semi-supervised method is to the trainer: its settings, the views that it needs, its modules and its losses.

A method is a module of its own beside the network. What it remembers are parameters and buffers, which go into the
checkpoint under a key of their own; it never holds the network itself. Limit: an interface; see ``fixmatch`` for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import WEAK
from nnunetv2_crossmatch.methods.settings import CommonSettings

Optimizer = tuple[torch.optim.Optimizer, Any]
"""An optimizer and the learning rate schedule that the trainer steps with it, once an epoch."""

Values = dict[str, torch.Tensor | float]
"""Scalars by name: ``loss``, and what is logged as a curve. A curve whose name does not begin with ``loss`` may be NaN
in steps that have no value for it."""


ENCODER_SHARE = 0.29  # of the multiplications of nnU-Net's plain 3d U-Net in a pass, patch 112 x 112 x 80


class Passes(NamedTuple):
    """How often encoders and decoders see a batch in a step: with gradient, and without.

    One unit is as many images as a step has labeled ones, which are as many as the unlabeled ones.
    """

    encoder: float
    encoder_without: float
    decoder: float
    decoder_without: float

    @property
    def cost(self) -> float:
        """In supervised steps; a pass with gradient costs three times one without. Losses are not counted."""
        encoder = self.encoder + self.encoder_without / 3
        decoder = self.decoder + self.decoder_without / 3
        return ENCODER_SHARE * encoder + (1 - ENCODER_SHARE) * decoder


class Method(nn.Module):
    """Base of all methods; :meth:`losses` (or :meth:`backward`) is what a method must have.

    Attributes:
        Settings: the settings class, common fields and the method's own.
        summary: what is learned from unlabeled images, in one line.
        remedy: tokens to try if the amount of a class among the pseudo-labels leaves that of the labeled volumes.
        presets: settings by name, published ones and those that were best here.
        unlabeled_views: views that the loader makes of each unlabeled crop, the weak one first.
        settings (CommonSettings): of this run.
        task (Task): the labels of the data set.
    """

    Settings: ClassVar[type[CommonSettings]] = CommonSettings
    summary: ClassVar[str] = ""
    remedy: ClassVar[str] = "a smaller unsup"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    unlabeled_views: ClassVar[tuple[str, ...]] = (WEAK,)

    def __init__(self, settings: Any, task: Task) -> None:
        super().__init__()
        self.settings, self.task = settings, task

    @classmethod
    def problems(cls, settings: Any, task: Task) -> list[Problem]:
        """Reasons why the method cannot train with these settings on this task; asked before anything is loaded."""
        return []

    @property
    def label_maps(self) -> int:
        """How many maps (float32) of each labeled image :meth:`of_labels` makes."""
        return 0

    def of_labels(self) -> Callable[[Any], torch.Tensor] | None:
        """A function that makes maps (B, :attr:`label_maps`, S) of a batch's target, in the loader's workers.

        It is copied to them, and its result is :attr:`Step.of_labels`.
        """
        return None

    def build(self, network: nn.Module, another: Callable[[], nn.Module]) -> None:
        """Add the method's modules; called once, after the network was made.

        Args:
            network: the network that is trained (an ``EncoderDecoder``); do not keep it.
            another: makes a second network of the same form with weights of its own.
        """

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        """Optimizers of the method's own parameters; ``default`` makes one of a module like the network's.

        Each is clipped and stepped by itself, and skipped in steps without a gradient.
        """
        return []

    def passes(self) -> Passes:
        """Passes of a step: the labeled and the unlabeled images once, unless a method says otherwise."""
        return Passes(2, 0, 2, 0)

    def start(self, network: nn.Module) -> None:
        """Take over what depends on the network's first weights (moving averages); called before the first step."""

    def drawn_cases(self, cases: Sequence[str], progress: float) -> list[str]:
        """Those of the unlabeled ``cases`` that are drawn in an epoch.

        Asked at its beginning, when the share ``progress`` of the run is done; in a run that is continued again.
        """
        return list(cases)

    def backward(self, step: Step) -> Values:
        """Compute the gradients of a step; returns its values without gradient."""
        values = self.losses(step)
        step.backward(torch.as_tensor(values["loss"]))
        return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in values.items()}

    def losses(self, step: Step) -> Values:
        """``loss``, the total with gradient, and further values to log; changes nothing."""
        raise TypeError(f"{type(self).__name__} has neither losses nor backward")

    def decisions(self) -> dict[str, Any]:
        """Plain values chosen in this run that must stay when it is continued; they go into the checkpoint."""
        return {}

    def decide_as(self, decisions: Mapping[str, Any]) -> None:
        """Take over the :meth:`decisions` of the run that is continued."""

    def after_step(self, step: Step) -> None:
        """Update what follows the network (moving averages, memory banks); called if its optimizer really stepped."""
