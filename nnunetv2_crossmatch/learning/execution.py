"""Forward and backward of a step's streams, all stacked in the batch or one after the other; the same gradients.

Limit: leaves gradients in ``.grad``; the method draws, the trainer steps the optimizer.
Shapes: B labeled and U unlabeled images, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from nnunetv2_crossmatch.learning.cutmix import Box, paste
from nnunetv2_crossmatch.learning.joint import joint_target
from nnunetv2_crossmatch.learning.network import StackedOutput
from nnunetv2_crossmatch.learning.orientation import Orientation, oriented
from nnunetv2_crossmatch.learning.perturbation import Perturbation, ValueMask
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import LABELED, StreamTable
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss

Drawn = Mapping[str, Sequence[Perturbation | ValueMask | None]]


def run_stacked(step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> torch.Tensor:
    """Backpropagate L_sup + weight * L_unsup with all streams in one decoder call (III-F).

    Args:
        step: images with their CutMix boxes pasted.
        drawn: feature perturbations by stream.
        loss: takes the pseudo-labels and losses of the streams.

    Returns:
        L_sup without gradient.
    """
    table = loss.table
    with step.autocast():
        output = _in_one_call(step, drawn, table)
        supervised = step.supervised(output.labeled)
        for stream, logits in output.streams.items():
            loss.add_pseudo_labels(stream, logits)
        unsupervised = torch.stack([loss.of_student(name, output.streams[name]) for name in table.students]).sum()
    step.backward(supervised + step.weight * unsupervised)
    return supervised.detach()


def _in_one_call(step: Step, drawn: Drawn, table: StreamTable, joint: bool = False) -> StackedOutput:
    """All streams of ``table`` in one encoder and one decoder call.

    Compiled, the whole is one graph. Where every step draws its students, that would be a graph for each set of them;
    encoder and decoder apart, whose graphs depend on the numbers of rows alone, are one for each number of views.
    """
    images = {view: step.images[view] for view in dict.fromkeys((LABELED, *table.views.values()))}
    roles = {"views": table.views, "teachers": table.computed_teachers, "students": table.students}
    if step.compiled and table.drawn_anew:
        return step.network._orig_mod.stacked(images, drawn, joint=joint, parts=step.network, **roles)
    return step.network(images, mode="stacked", drawn=drawn, joint=joint, **roles)


def run_joint(step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> torch.Tensor:
    """Backpropagate the host's loss of labeled and pseudo-labeled images as one batch, on all heads; returns it.

    A student learns from its first teacher's labels; the weights of the rows are not used.
    """
    table = loss.table
    with step.autocast():
        output = _in_one_call(step, drawn, table, joint=True)
        for stream, logits in output.streams.items():
            loss.add_pseudo_labels(stream, logits)
        labels = [loss.first_target(student) for student in table.students]
        total = step.supervised_loss(output.labeled, joint_target(step.target, labels, step.task.channels))
    step.backward(total)
    return total.detach()


def run_sequential(step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> torch.Tensor:
    """The gradients of :func:`run_stacked`: the labeled images, then one view and one of its streams after the other.

    With instance norm they are equal. The activations of one encoder and one decoder call are held at a time.
    """
    with step.autocast():
        supervised = step.supervised(step.network(step.images[LABELED]))
    step.backward(supervised)
    for view in loss.table.view_order:
        _run_view(step, view, drawn, loss)
    return supervised.detach()


def _run_view(step: Step, view: str, drawn: Drawn, loss: UnsupervisedLoss) -> None:
    """Encode a view once; backpropagate its students into detached features, then those through the encoder."""
    streams = [name for name, seen in loss.table.views.items() if seen == view]
    learning = any(name in loss.table.students for name in streams)
    with step.autocast(), torch.set_grad_enabled(learning):
        features = step.network(step.images[view], mode="encode")
    leaves = [level.detach().requires_grad_(learning) for level in features]
    for name in streams:
        _run_stream(step, name, leaves, drawn, loss)
    if learning:
        torch.autograd.backward(features, [leaf.grad for leaf in leaves])


def _run_stream(step: Step, name: str, leaves: list[torch.Tensor], drawn: Drawn, loss: UnsupervisedLoss) -> None:
    learns = name in loss.table.students
    with step.autocast(), torch.set_grad_enabled(learns):
        logits = step.network(leaves, mode="decode", drawn=drawn.get(name))[0]
        loss.add_pseudo_labels(name, logits)
        student_loss = step.weight * loss.of_student(name, logits) if learns else None
    if student_loss is not None:
        step.backward(student_loss)


def with_boxes(
    images: Mapping[str, torch.Tensor],
    boxes: Mapping[str, Sequence[Box | None]],
    donors: Mapping[str, Sequence[int | None]] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """``images`` by view, with the boxes of a view pasted into it, of labeled images where ``donors`` says so."""

    def pasted(view: str) -> torch.Tensor:
        return paste(images[view], boxes[view], images[LABELED], donors.get(view, ()))

    return {view: pasted(view) if view in boxes else image for view, image in images.items()}


def with_orientations(
    images: Mapping[str, torch.Tensor], orientations: Mapping[str, Sequence[Orientation]]
) -> dict[str, torch.Tensor]:
    """``images`` by view, with the samples of a view in its orientations."""
    return {
        view: oriented(image, orientations[view]) if view in orientations else image for view, image in images.items()
    }
