"""Forward and backward of one training step, all streams stacked or one after the other; the same gradients.

Limit: leaves gradients in ``.grad``; drawing, CutMix of the images and the optimizer are the trainer's.
Shapes: B labeled and U unlabeled images, C channels, S spatial axes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from nnunetv2_crossmatch.cutmix import Box, paste
from nnunetv2_crossmatch.losses import Criterion, LossRow
from nnunetv2_crossmatch.network import CrossMatchNetwork, Features, split_views
from nnunetv2_crossmatch.perturbation import Perturbation
from nnunetv2_crossmatch.pseudo_labels import PseudoLabel, pseudo_label
from nnunetv2_crossmatch.streams import LABELED, STREAMS, STRONG_VIEWS, TEACHER

Drawn = Mapping[str, Sequence[Perturbation | None]]


@dataclass
class Lesson:
    """One step's pseudo-labels and losses: streams teach in turn, students are compared with what they saw.

    Attributes:
        table: the rows of the unsupervised loss.
        criterion: H of the rows.
        tau: confidence from which a pseudo-label counts.
        boxes: CutMix boxes by strong view; a label gets the boxes of its student's view.
        parts: unsupervised losses by name, without gradient, as far as the step has come.
        unsupervised: their sum with the table's factors.
        labels: pseudo-labels by teaching stream, before CutMix.
    """

    table: Sequence[LossRow]
    criterion: Criterion
    tau: float
    boxes: Mapping[str, Sequence[Box | None]]
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    unsupervised: torch.Tensor | float = 0.0
    labels: dict[str, PseudoLabel] = field(default_factory=dict)

    def teach(self, stream: str, logits: torch.Tensor) -> None:
        """Take the pseudo-labels of ``stream`` (U, C, S) if any row learns from them."""
        if any(row.teacher == stream for row in self.table):
            self.labels[stream] = pseudo_label(logits, self.tau, self.criterion.regions)

    def loss(self, student: str, logits: torch.Tensor) -> torch.Tensor:
        """Sum of the student's rows; its teachers must have taught."""
        rows = [row for row in self.table if row.student == student]
        boxes = self.boxes.get(STREAMS[student].view, ())
        losses = [row.weight * self.criterion(logits, self.labels[row.teacher].cutmixed(boxes)) for row in rows]
        for row, loss in zip(rows, losses, strict=True):
            self.parts[row.part] = self.parts.get(row.part, 0) + loss.detach()
        total = torch.stack([row.factor * loss for row, loss in zip(rows, losses, strict=True)]).sum()
        self.unsupervised = self.unsupervised + total.detach()
        return total

    def report(self, supervised: torch.Tensor, weight: float) -> dict[str, torch.Tensor | float]:
        """The step's values to log, still on the device."""
        return {
            "loss": supervised + weight * self.unsupervised,
            "loss_sup": supervised,
            **{f"loss_{part}": loss for part, loss in self.parts.items()},
            "unsup_weight": weight,
            "confident_share": self.confident_share(),
            "agreement": self.agreement(),
        }

    def confident_share(self) -> torch.Tensor:
        """Share of the teacher's voxels whose label counts."""
        return self.labels[TEACHER].valid.float().mean()

    def agreement(self) -> torch.Tensor:
        """Share of voxels on which the assistants' labels equal the teacher's, mean over the assistants."""
        reference = self.labels[TEACHER].labels
        others = [label.labels for stream, label in self.labels.items() if stream != TEACHER]
        return torch.stack([(labels == reference).float().mean() for labels in others]).mean()


@dataclass(frozen=True)
class Step:
    """Runs forward and backward of L = L_sup + weight * L_unsup.

    Attributes:
        network: a :class:`CrossMatchNetwork`, compiled or not; for ``stacked`` also under DistributedDataParallel.
        supervised: the host's loss of (labeled output, target).
        backward: backpropagates a scalar (through the gradient scaler, if there is one).
        autocast: context of the forward passes.
    """

    network: Any
    supervised: Callable[[Any, Any], torch.Tensor]
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward
    autocast: Callable[[], AbstractContextManager] = nullcontext

    def stacked(
        self, images: Mapping[str, torch.Tensor], target: Any, drawn: Drawn, lesson: Lesson, weight: float
    ) -> torch.Tensor:
        """All streams in one decoder call (III-F); returns L_sup without gradient."""
        with self.autocast():
            output = self.network(images, mode="stacked", drawn=drawn)
            supervised = self.supervised(output.labeled, target)
            lesson.teach(TEACHER, output.teacher)
            for stream, logits in output.students.items():
                lesson.teach(stream, logits)
            unsupervised = torch.stack([lesson.loss(*student) for student in output.students.items()]).sum()
        self.backward(supervised + weight * unsupervised)
        return supervised.detach()

    def sequential(
        self, images: Mapping[str, torch.Tensor], target: Any, drawn: Drawn, lesson: Lesson, weight: float
    ) -> torch.Tensor:
        """One stream at a time into detached features, then the encoder once; returns L_sup without gradient.

        With instance norm the gradients are those of ``stacked``; only one stream's decoder activations are kept.
        """
        with self.autocast():
            features = self.network(torch.cat(list(images.values())), mode="encode")
        leaves = {view: _leaves(levels) for view, levels in split_views(features, images).items()}
        with self.autocast():
            rows = len(images[LABELED])
            heads = self.network(leaves[LABELED], mode="decode", labeled_rows=rows)
            supervised = self.supervised(_unwrapped(self.network).for_host(heads), target)
        self.backward(supervised)
        del heads
        for name, stream in STREAMS.items():
            options = {"perturbation": stream.perturbation, "drawn": drawn.get(name)}
            with self.autocast(), torch.set_grad_enabled(name != TEACHER):
                logits = self.network(leaves[stream.view], mode="decode", **options)[0]
                lesson.teach(name, logits)
                loss = None if name == TEACHER else weight * lesson.loss(name, logits)
            if loss is not None:
                self.backward(loss)
        torch.autograd.backward(features, [torch.cat(level) for level in _gradients(leaves)])
        return supervised.detach()


def mixed(images: Mapping[str, torch.Tensor], boxes: Mapping[str, Sequence[Box | None]]) -> dict[str, torch.Tensor]:
    """``images`` with their boxes pasted into the strong views."""
    return {view: paste(image, boxes[view]) if view in STRONG_VIEWS else image for view, image in images.items()}


def fits_in_memory(step: Callable[[], object], network: torch.nn.Module) -> bool:
    """Whether ``step`` (forward and backward) runs without exhausting the GPU's memory; frees what it held.

    The optimizer's state, which the first real step will add, is held in reserve meanwhile: at most two values per
    parameter (AdamW).
    """
    try:
        reserve = [torch.empty_like(p) for p in network.parameters() for _ in range(2)]
        step()
        del reserve
        return True
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        network.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def mean_square(output: Any, target: Any) -> torch.Tensor:
    """Stands for the supervised loss where only the memory of a step matters."""
    heads = output if isinstance(output, list) else [output]
    return torch.stack([head.float().square().mean() for head in heads]).sum()


def _leaves(levels: Features) -> Features:
    return [level.detach().requires_grad_() for level in levels]


def _gradients(leaves: Mapping[str, Features]) -> list[tuple[torch.Tensor, ...]]:
    """Gradients by level, each a tuple over the views in their order."""
    by_view = [
        [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in view] for view in leaves.values()
    ]
    return list(zip(*by_view, strict=True))


def _unwrapped(network: Any) -> CrossMatchNetwork:
    return getattr(network, "_orig_mod", network)
