"""What only a CUDA device can show; not measured yet where none was at hand."""

from __future__ import annotations

import pytest
import torch
from small import crossmatch_network, gradient, host_network, random_step, supervised_loss

from nnunetv2_crossmatch.lesson import Lesson
from nnunetv2_crossmatch.losses import Criterion, loss_table
from nnunetv2_crossmatch.step import Step, mixed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_mixed_precision_gives_the_gradient_of_both_executions(dimensions):
    network = crossmatch_network(host_network(dimensions, 3)).cuda()
    step = random_step(network, 2, 2)
    images = {view: image.float().cuda() for view, image in step.images.items()}
    drawn = {name: [p._replace(scale=p.scale.float().cuda()) for p in levels] for name, levels in step.drawn.items()}
    gradients = {}
    for way in ("stacked", "sequential"):
        network.zero_grad()
        lesson = Lesson(loss_table(0.3), Criterion(False, (0, 1, 2)), 0.5, step.boxes)
        run = Step(network, supervised_loss, autocast=lambda: torch.autocast("cuda"))
        getattr(run, way)(mixed(images, step.boxes), None, drawn, lesson, 0.5)
        assert all(part.dtype == torch.float32 for part in lesson.parts.values())
        gradients[way] = gradient(network)
    difference = (gradients["stacked"] - gradients["sequential"]).norm() / gradients["stacked"].norm()
    assert difference < 0.02
