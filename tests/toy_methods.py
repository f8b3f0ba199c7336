"""Methods for tests of the base: a moving average of the network as teacher, and a second network that is trained, too.

Limit: softmax only. They are not in the package's list of methods; ``with_toys`` adds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from nnunetv2_crossmatch.learning.network import full_resolution
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.methods import names
from nnunetv2_crossmatch.methods.method import Method, Optimizer, Values
from nnunetv2_crossmatch.methods.settings import CommonSettings, setting


@dataclass(frozen=True)
class MovingAverageSettings(CommonSettings):
    trainer: ClassVar[str] = "nnUNetTrainerMovingAverage"

    alpha: float = setting(0.9, "alpha", "share of the average that stays in a step", "ours", low=0, high=1)


class MovingAverage(Method):
    """Mean Teacher (Tarvainen and Valpola, NIPS 2017) without noise."""

    Settings = MovingAverageSettings
    settings: MovingAverageSettings

    def build(self, network: nn.Module, another: Callable[[], nn.Module]) -> None:
        self.average = another().requires_grad_(False)

    def start(self, network: nn.Module) -> None:
        self.average.load_state_dict(network.state_dict())

    def losses(self, step: Step) -> Values:
        with step.autocast():
            supervised = step.supervised(step.network(step.images["labeled"]))
            student = full_resolution(step.network(step.images["weak"])).float()
            with torch.no_grad():
                teacher = full_resolution(self.average(step.images["weak"])).float()
        consistency = (student.softmax(1) - teacher.softmax(1)).square().mean()
        total = supervised + step.weight * consistency
        return {"loss": total, "loss_sup": supervised, "loss_consistency": consistency}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        for average, weight in zip(self.average.parameters(), step.network.parameters(), strict=True):
            average.lerp_(weight, 1 - self.settings.alpha)


@dataclass(frozen=True)
class TwoNetworksSettings(CommonSettings):
    trainer: ClassVar[str] = "nnUNetTrainerTwoNetworks"


class TwoNetworks(Method):
    """Two networks, each with a supervised loss, and a common one that pulls them together."""

    Settings = TwoNetworksSettings

    def build(self, network: nn.Module, another: Callable[[], nn.Module]) -> None:
        self.peer = another()

    def optimizers(self, default: Callable[[nn.Module], Optimizer]) -> list[Optimizer]:
        return [default(self.peer)]

    def losses(self, step: Step) -> Values:
        with step.autocast():
            first, second = (network(step.images["labeled"]) for network in (step.network, self.peer))
            supervised = step.supervised(first) + 30 * step.supervised(second)
            views = [full_resolution(network(step.images["weak"])).softmax(1) for network in (step.network, self.peer)]
        common = (views[0] - views[1]).square().mean()
        return {"loss": supervised + step.weight * common, "loss_sup": supervised, "loss_common": common}


def with_toys() -> list[type[Method]]:
    """The package's methods and those of this module."""
    return [*names.METHODS, MovingAverage, TwoNetworks]
