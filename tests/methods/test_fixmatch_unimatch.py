"""FixMatch and UniMatch: a whole step of each against its slow statement, through the gradient of every parameter."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import reference
import torch
from small import PATCH, gradient, host_network, supervised_loss

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.methods.fixmatch import FixMatch, FixMatchSettings
from nnunetv2_crossmatch.methods.method import Method
from nnunetv2_crossmatch.methods.names import settings_from_name
from nnunetv2_crossmatch.methods.unimatch import UniMatch

U = 0.5


def drawn_step(method: Method, dimensions: int, task: Task) -> tuple[Step, dict[str, Any]]:
    """A random step in float64, and what the method will draw in it."""
    torch.manual_seed(1)
    network = EncoderDecoder(host_network(dimensions, task.channels)).double()
    views, shape = ("labeled", *method.unlabeled_views), (3, 1, *PATCH[dimensions])
    images = {view: torch.randn(shape, dtype=torch.float64) for view in views}
    step, seen = Step(network, images, None, task, supervised_loss, weight=U, seed=3), {}
    own_draw = method.draw

    def draw(*arguments: Any) -> Any:
        seen["boxes"], seen["drawn"] = own_draw(*arguments)
        return seen["boxes"], seen["drawn"]

    method.draw = draw  # type: ignore[attr-defined]
    return step, seen


@pytest.mark.parametrize("execution", ["stacked", "sequential"])
@pytest.mark.parametrize(
    ("dimensions", "task", "classes", "tau"),
    [
        (2, Task(2, dimensions=2), (1,), 0.6),
        (3, Task(3, dimensions=3), (0, 1, 2), 0.45),
        (2, Task(3, regions=True, dimensions=2), (0, 1, 2), 0.6),
    ],
    ids=["one class 2d", "two classes 3d", "regions 2d"],
)
@pytest.mark.parametrize("method_class", [FixMatch, UniMatch])
def test_a_step_equals_the_slow_statement(method_class, dimensions, task, classes, tau, execution):
    name = f"{method_class.Settings.trainer}_exec{execution}_cutmix1_tau{tau}".replace("0.", "0p")
    method = method_class(settings_from_name(name), task)
    step, seen = drawn_step(method, dimensions, task)
    images, slow = dict(step.images), copy.deepcopy(step.network)
    values = method.backward(step)
    options = {"supervised": supervised_loss, "u": U, "tau": tau, "classes": classes, "regions": task.regions}
    if method_class is FixMatch:
        total, parts = reference.fixmatch_loss(slow, images, seen["boxes"], **options)
    else:
        kept = [level.scale != 0 for level in seen["drawn"]["fp"]]
        assert 0.2 < torch.cat([each.flatten() for each in kept]).double().mean() < 0.8
        total, parts = reference.unimatch_loss(slow, images, seen["boxes"], kept, **options)
    total.backward()
    assert values["loss"].item() == pytest.approx(total.item(), rel=1e-12)
    for part, value in parts.items():
        assert values[f"loss_{part}"].item() == pytest.approx(value.item(), rel=1e-12), part
    assert 0.05 < values["confident_share"] < 0.999
    assert "agreement" not in values  # one stream labels
    assert (gradient(step.network) - gradient(slow)).norm() < 1e-10 * gradient(slow).norm()


def test_recommended_settings_are_those_that_were_measured():
    read = settings_from_name("nnUNetTrainerFixMatch_recommended")
    assert read == FixMatchSettings(
        labeled_only=0.25, geometry=1, ema=0.99, mirror_teacher=1, criterion="dicece", unsupervised=1.0
    )
    assert settings_from_name("nnUNetTrainerFixMatch_recommended_5epochs") == replace(read, epochs=5)
    with pytest.raises(InputError, match="'recommended' unknown"):
        settings_from_name("nnUNetTrainerUniMatch_recommended")


@pytest.mark.parametrize(("method_class", "views"), [(FixMatch, 2), (UniMatch, 3)])
def test_the_loader_makes_only_the_views_that_the_method_needs(method_class, views):
    assert len(method_class.unlabeled_views) == views
    streams = method_class(method_class.Settings(), Task(2)).table().streams
    assert {stream.view for stream in streams.values()} == set(method_class.unlabeled_views)


@pytest.mark.parametrize("method", ["FixMatch", "UniMatch"])
def test_the_preset_has_the_published_numbers(method):
    preset = settings_from_name(f"nnUNetTrainer{method}_ACDC")
    assert (preset.tau, preset.optimizer, preset.batch, preset.unlabeled_batch) == (0.95, "sgd", 12, 12)
    assert (preset.warmup, preset.unsupervised, preset.cutmix) == (0, 2, 0.5)
    assert preset.epochs * preset.iterations == 29_000
    assert getattr(preset, "feature_dropout", 0.5) == 0.5
