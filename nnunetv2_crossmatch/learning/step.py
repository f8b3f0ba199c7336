"""Forward and backward of one training step, all streams stacked or one after the other; the same gradients.

Limit: leaves gradients in ``.grad``; drawing, CutMix of the images and the optimizer are the trainer's.
Shapes: B labeled and U unlabeled images, C channels, S spatial axes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from nnunetv2_crossmatch.learning.cutmix import Box, paste
from nnunetv2_crossmatch.learning.perturbation import Perturbation
from nnunetv2_crossmatch.learning.streams import LABELED, STREAMS, STRONG_VIEWS
from nnunetv2_crossmatch.learning.unsupervised import Lesson

Drawn = Mapping[str, Sequence[Perturbation | None]]


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
        needed = {view: images[view] for view in (LABELED, *lesson.views)}
        with self.autocast():
            output = self.network(
                needed, mode="stacked", drawn=drawn, teachers=lesson.teachers, students=lesson.students
            )
            supervised = self.supervised(output.labeled, target)
            for stream, logits in output.streams.items():
                lesson.teach(stream, logits)
            unsupervised = torch.stack([lesson.loss(name, output.streams[name]) for name in lesson.students]).sum()
        self.backward(supervised + weight * unsupervised)
        return supervised.detach()

    def sequential(
        self, images: Mapping[str, torch.Tensor], target: Any, drawn: Drawn, lesson: Lesson, weight: float
    ) -> torch.Tensor:
        """The labeled images, then one view and one of its streams after the other; returns L_sup without gradient.

        With instance norm the gradients are those of ``stacked``. The activations of one encoder and one decoder call
        are held at a time.
        """
        with self.autocast():
            supervised = self.supervised(self.network(images[LABELED]), target)
        self.backward(supervised)
        for view in lesson.views:
            self._view(view, images[view], drawn, lesson, weight)
        return supervised.detach()

    def _view(self, view: str, image: torch.Tensor, drawn: Drawn, lesson: Lesson, weight: float) -> None:
        """Encode a view once; backpropagate its students into detached features, then those through the encoder."""
        names = [name for name in (*lesson.teachers, *lesson.students) if STREAMS[name].view == view]
        learning = any(name in lesson.students for name in names)
        with self.autocast(), torch.set_grad_enabled(learning):
            features = self.network(image, mode="encode")
        leaves = [level.detach().requires_grad_(learning) for level in features]
        for name in names:
            self._stream(name, leaves, drawn.get(name), lesson, weight)
        if learning:
            torch.autograd.backward(features, [leaf.grad for leaf in leaves])

    def _stream(self, name: str, leaves: list[torch.Tensor], drawn: Any, lesson: Lesson, weight: float) -> None:
        learns = name in lesson.students
        with self.autocast(), torch.set_grad_enabled(learns):
            logits = self.network(leaves, mode="decode", perturbation=STREAMS[name].perturbation, drawn=drawn)[0]
            lesson.teach(name, logits)
            loss = weight * lesson.loss(name, logits) if learns else None
        if loss is not None:
            self.backward(loss)


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
