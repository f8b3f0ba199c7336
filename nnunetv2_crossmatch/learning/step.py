"""One training step as a method sees it: images, target, network, progress, and random numbers to draw from.

Limit: facts and small operations; the losses are the method's, the optimizer step is the trainer's.
Shapes: B labeled and U unlabeled images, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel
from nnunetv2_crossmatch.learning.streams import WEAK

PROCESS_DRAWS, SHARED_DRAWS = 2, 3  # the loaders draw from 0 (training) and 1 (validation), views on a GPU from 4


@dataclass(frozen=True)
class Task:
    """The labels of a data set, as far as a method needs them.

    Attributes:
        channels: outputs of the network.
        regions: one sigmoid per channel (a region) instead of a softmax over classes.
        dimensions: spatial axes, 2 or 3.
        ignore: whether some voxels of labeled images carry the ignore label.
        spacing: voxel size by axis in mm, as trained.
        patch_size: voxels by axis; empty if it is not known.
    """

    channels: int
    regions: bool = False
    dimensions: int = 3
    ignore: bool = False
    spacing: tuple[float, ...] = ()
    patch_size: tuple[int, ...] = ()

    @property
    def foreground(self) -> int:
        """How many foreground classes or regions there are."""
        return self.channels if self.regions else self.channels - 1


@dataclass
class Step:
    """One training step.

    Attributes:
        network: an ``EncoderDecoder``, compiled or not, never wrapped for several processes.
        images: by view, ``labeled`` (B, C, S) first, then the unlabeled views (U, C, S). A method may replace them.
        target: of the labeled images, as the host's loss takes it.
        task: the labels of the data set.
        supervised_loss: the host's loss of (output, target).
        local_supervised_loss: the same without exchange between processes.
        head_loss: the host's loss of one head and the target at its resolution; ``supervised_loss`` if not given.
        weight: of the unsupervised losses (u).
        progress: share of the run that is done, 0 to 1.
        index: number of the step in the run.
        seed: of the run, equal in all processes.
        rank: of this process.
        distributed: whether losses that are sums over the batch have to be summed over processes.
        scale: applied to each loss before it is backpropagated (a gradient scaler's).
        autocast: context of forward passes.
        log: prints a line to the training log.
        class_shares: of the voxels of the labeled volumes, by foreground class or region in the order of the outputs;
            empty if it is not known.
        stateless: parameters whose optimizer has no state yet; None: all.
        of_labels: maps (B, K, S) that the loader's workers made of the labels for the method, or None.
        cases: names of the unlabeled images' cases.
        pseudo_labels: the unlabeled images' labels (weak view), set by the method; compared with references in
            diagnosis.
    """

    network: Any
    images: dict[str, torch.Tensor]
    target: Any
    task: Task
    supervised_loss: Callable[[Any, Any], torch.Tensor]
    local_supervised_loss: Callable[[Any, Any], torch.Tensor] | None = None
    head_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    weight: float = 1.0
    progress: float = 0.0
    index: int = 0
    seed: int = 0
    rank: int = 0
    distributed: bool = False
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss
    autocast: Callable[[], AbstractContextManager] = nullcontext
    log: Callable[[str], None] = print
    class_shares: Mapping[str, float] = field(default_factory=dict)
    stateless: Sequence[torch.Tensor] | None = None
    of_labels: torch.Tensor | None = None
    cases: Sequence[str] = ()
    pseudo_labels: PseudoLabel | None = None

    @property
    def compiled(self) -> bool:
        """Whether ``torch.compile`` compiles the network."""
        return hasattr(self.network, "_orig_mod")

    def supervised(self, output: Any) -> torch.Tensor:
        """The host's loss of the network's ``output`` for the labeled images."""
        return self.supervised_loss(output, self.target)

    @property
    def full_target(self) -> torch.Tensor:
        """The target of the labeled images at full resolution."""
        return self.target[0] if isinstance(self.target, list) else self.target

    def full_supervised(self, logits: torch.Tensor) -> torch.Tensor:
        """The host's loss of ``logits`` (B, C, S) of the labeled images at full resolution."""
        return (self.head_loss or self.supervised_loss)(logits, self.full_target)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of ``loss`` to ``.grad`` of every parameter that it depends on."""
        self.scale(loss).backward()

    def without_exchange(self) -> Step:
        """The same step with losses of this process alone."""
        return replace(self, supervised_loss=self.local_supervised_loss or self.supervised_loss, distributed=False)

    @cached_property
    def rng(self) -> np.random.Generator:
        """Numbers of this process and step."""
        return np.random.default_rng(self._entropy)

    @cached_property
    def generator(self) -> torch.Generator:
        """Numbers of this process and step on the device of the images."""
        device = self.images[WEAK].device
        return torch.Generator(device).manual_seed(int(self._entropy.generate_state(1)[0]))

    @cached_property
    def shared_rng(self) -> np.random.Generator:
        """Numbers of this step, equal in all processes."""
        return np.random.default_rng((self.seed, 0, SHARED_DRAWS, self.index))

    @property
    def _entropy(self) -> np.random.SeedSequence:
        return np.random.SeedSequence((self.seed, self.rank, PROCESS_DRAWS, self.index))
