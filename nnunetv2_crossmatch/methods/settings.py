"""Settings that all methods share, each with its source; a method adds its own fields.

Limit: plain values only; the modules that read them say what they do, ``tokens`` how a trainer's name spells them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from nnunetv2_crossmatch.methods.tokens import spelled

HOST = "nnU-Net"
OURS = "ours"
RELEASED = "authors' released code"


def setting(
    default: Any,
    token: str,
    meaning: str,
    source: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    kind: type = float,
) -> Any:
    """One field of a settings class; ``None`` as default means that the value follows from the data set or plans."""
    return field(
        default=default,
        metadata={
            "token": token,
            "meaning": meaning,
            "source": source,
            "low": low,
            "high": high,
            "choices": choices,
            "kind": str if choices else kind,
        },
    )


def switch(token: str, meaning: str, source: str = OURS, default: int = 0) -> Any:
    """A setting that is 0 or 1."""
    return setting(default, token, meaning, source, low=0, high=1, kind=int)


def redefined(settings: type, name: str, default: Any, source: str, meaning: str = "") -> Any:
    """The field ``name`` of ``settings`` with a default of another source, and with another ``meaning`` if given."""
    metadata = dict(next(each.metadata for each in fields(settings) if each.name == name))
    changed = {"source": source, "meaning": meaning or metadata["meaning"]}
    return field(default=default, metadata=metadata | changed)


@dataclass(frozen=True)
class CommonSettings:
    """Settings of one run. Immutable; equal settings have equal names.

    Attributes:
        trainer: name of the trainer without tokens.
    """

    trainer: ClassVar[str] = "nnUNetTrainerSemiSupervised"

    epochs: int = setting(250, "epochs", "length of the run in epochs", OURS, low=1, kind=int)
    iterations: int = setting(250, "iters", "training steps per epoch", HOST, low=1, kind=int)
    validation_iterations: int = setting(50, "valiters", "validation steps per epoch", HOST, low=1, kind=int)
    unsupervised: float = setting(
        0.5, "unsup", "weight u of the unsupervised losses; 0 is exactly the host's step", "paper, Algorithm 1", low=0
    )
    warmup: float = setting(
        0.4, "warmup", "fraction of the run over which u rises linearly from 0; 0 is the paper", OURS, low=0, high=1
    )
    labeled_only: float = setting(
        0.0,
        "labeledonly",
        "part of the run, at its beginning, that is the host's step on labeled images; the warm-up begins after it",
        OURS,
        low=0,
        high=1,
    )
    views: str = setting(
        "host",
        "views",
        "intensity changes of the strong views: the host's own augmentation, or the authors' recipe",
        f"{HOST}; {RELEASED}",
        choices=("host", "authors"),
    )
    gpu_views: int = switch("gpuviews", "1: the strong views are made on the GPU, where loader workers are scarce")
    batch: int | None = setting(
        None, "batch", "labeled samples per step; the plans' batch size, at least 2", "paper, IV-2", low=1, kind=int
    )
    unlabeled_batch: int | None = setting(
        None, "ubatch", "unlabeled samples per step; as many as labeled ones", "paper, IV-2", low=1, kind=int
    )
    recompute: int = switch(
        "recompute", "1: activation checkpointing of the encoder, less memory for one more pass of it"
    )
    optimizer: str = setting("sgd", "opt", "optimizer", f"{HOST}; paper, IV-2", choices=("sgd", "adamw"))
    learning_rate: float | None = setting(
        None, "lr", "initial learning rate; 0.01 for sgd, 0.001 for adamw", f"{HOST}; {RELEASED}", low=0
    )
    seed: int | None = setting(
        None, "seed", "makes the run repeatable on one machine; drawn and recorded if absent", OURS, low=0, kind=int
    )
    verify: int = switch("verify", "1: check the unlabeled files against their manifest; 0: skip", default=1)
    diagnose: int = switch("diagnose", "1: log the pseudo-labels' true Dice; never used in training")

    @property
    def trainer_name(self) -> str:
        """Name of the trainer with these settings: the tokens of all fields that differ from the default."""
        return "_".join([self.trainer, *spelled(self)])

    def unsupervised_at(self, progress: float) -> float:
        """Weight u at ``progress`` (0 to 1) of a run: rises linearly from 0 over the warm-up."""
        since = progress - self.labeled_only
        return self.unsupervised * (min(1.0, since / self.warmup) if self.warmup else 1.0)

    @property
    def first_unsupervised(self) -> int:
        """Number of the first step that learns from unlabeled images, too."""
        return math.ceil(self.labeled_only * self.epochs * self.iterations)
