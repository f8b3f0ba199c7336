"""Every number of the method, each with its source, and the trainer names that spell them.

A run is named by its settings, as the host names its variants: ``nnUNetTrainerCrossMatch_100epochs_eta0p2_tau0p95`` is
the default with three changes. ``p`` stands for the decimal point: a dot would break pickling by name and a double
underscore the host's folder names. Limit: plain values only; what they do is in the modules that read them.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

import numpy as np

from nnunetv2_crossmatch.errors import InputError, Problem

TRAINER_NAME = "nnUNetTrainerCrossMatch"

HOST = "nnU-Net"
OURS = "ours"
RELEASED = "authors' released code"


def _setting(
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
    """One field of :class:`Settings`; ``None`` as default means that the value follows from the data set or plans."""
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


@dataclass(frozen=True)
class Settings:
    """All settings of one run. Immutable; equal settings have equal names."""

    epochs: int = _setting(250, "epochs", "length of the run in epochs", OURS, low=1, kind=int)
    iterations: int = _setting(250, "iters", "training steps per epoch", HOST, low=1, kind=int)
    validation_iterations: int = _setting(50, "valiters", "validation steps per epoch", HOST, low=1, kind=int)
    eta: float = _setting(
        0.3, "eta", "share of the decoder distillation among the distillation losses", "paper, Table IV", low=0, high=1
    )
    tau: float | None = _setting(
        None,
        "tau",
        "confidence from which a pseudo-label counts; 0.85 with one foreground class, 0.5 with more (paper: 0.95)",
        f"paper, IV-2; {OURS}",
        low=0,
        high=1,
    )
    tau_end: float | None = _setting(
        None, "tauend", "confidence threshold at the end of the run, reached linearly from tau", OURS, low=0, high=1
    )
    weak_dropout: float = _setting(
        0.25, "weak", "rate of the weak feature perturbation", "paper, Table V", low=0, high=0.99
    )
    strong_dropout: float = _setting(
        0.75, "strong", "rate of the strong feature perturbation", "paper, Table V", low=0, high=0.99
    )
    dropout: str = _setting(
        "channel",
        "drop",
        "kind of feature perturbation",
        "paper, Fig. 5",
        choices=("channel", "alpha", "featurealpha"),
    )
    levels: str = _setting(
        "all",
        "levels",
        "features that are perturbed: all skips and the bottleneck, or the bottleneck alone (the paper's text)",
        RELEASED,
        choices=("all", "bottleneck"),
    )
    temperature: float = _setting(1.0, "temp", "softmax temperature of the students", RELEASED, low=0.01)
    absent: str = _setting(
        "count",
        "absent",
        "a class without valid pseudo-labels: count its Dice loss of 1, which has hardly a gradient, or leave it out "
        "of the mean, which gives the others more weight",
        RELEASED,
        choices=("count", "skip"),
    )
    classes: str = _setting(
        "auto",
        "classes",
        "classes of the Dice: auto is foreground with one foreground class, all with several",
        RELEASED,
        choices=("auto", "foreground", "all"),
    )
    criterion: str = _setting(
        "dice",
        "criterion",
        "distance of student and pseudo-label; dicece adds cross-entropy on the valid voxels",
        f"paper, III-E; {RELEASED}",
        choices=("dice", "dicece"),
    )
    unsupervised: float = _setting(
        0.5, "unsup", "weight u of the unsupervised losses; 0 is exactly the host's step", "paper, Algorithm 1", low=0
    )
    warmup: float = _setting(
        0.4, "warmup", "fraction of the run over which u rises linearly from 0; 0 is the paper", OURS, low=0, high=1
    )
    cutmix: float = _setting(0.5, "cutmix", "probability that a strong view receives a box", RELEASED, low=0, high=1)
    views: str = _setting(
        "host",
        "views",
        "intensity changes of the strong views: the host's own augmentation, or the authors' recipe",
        f"{HOST}; {RELEASED}",
        choices=("host", "authors"),
    )
    gpu_views: int = _setting(
        0,
        "gpuviews",
        "1: the strong views are made on the GPU, where loader workers are scarce",
        OURS,
        low=0,
        high=1,
        kind=int,
    )
    batch: int | None = _setting(
        None, "batch", "labeled samples per step; the plans' batch size, at least 2", "paper, IV-2", low=1, kind=int
    )
    unlabeled_batch: int | None = _setting(
        None, "ubatch", "unlabeled samples per step; as many as labeled ones", "paper, IV-2", low=1, kind=int
    )
    execution: str = _setting(
        "auto",
        "exec",
        "all streams in one decoder call, or one after the other in less memory; auto tries the first",
        f"paper, III-F; {OURS}",
        choices=("auto", "stacked", "sequential"),
    )
    students: int = _setting(
        6,
        "students",
        "how many of the six students learn in a step, drawn anew; their losses weigh more",
        OURS,
        low=1,
        high=6,
        kind=int,
    )
    recompute: int = _setting(
        0,
        "recompute",
        "1: activation checkpointing of the encoder, less memory for one more pass of it",
        OURS,
        low=0,
        high=1,
        kind=int,
    )
    optimizer: str = _setting("sgd", "opt", "optimizer", f"{HOST}; paper, IV-2", choices=("sgd", "adamw"))
    learning_rate: float | None = _setting(
        None, "lr", "initial learning rate; 0.01 for sgd, 0.001 for adamw", f"{HOST}; {RELEASED}", low=0
    )
    seed: int | None = _setting(
        None, "seed", "makes the run repeatable on one machine; drawn and recorded if absent", OURS, low=0, kind=int
    )
    verify: int = _setting(
        1, "verify", "1: check the unlabeled files against their manifest; 0: skip", OURS, low=0, high=1, kind=int
    )
    diagnose: int = _setting(
        0, "diagnose", "1: log the pseudo-labels' true Dice; never used in training", OURS, low=0, high=1, kind=int
    )

    @property
    def trainer_name(self) -> str:
        """Name of the trainer with these settings: the tokens of all fields that differ from the default."""
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return "_".join([TRAINER_NAME, *(_spell(f, getattr(self, f.name)) for f in changed)])

    def tau_at(self, progress: float, foreground_classes: int) -> float:
        """Confidence threshold at ``progress`` (0 to 1) of a run, with that many foreground classes or regions."""
        from_data = 0.85 if foreground_classes == 1 else 0.5
        tau = from_data if self.tau is None else self.tau
        end = tau if self.tau_end is None else self.tau_end
        return tau + (end - tau) * progress

    def unsupervised_at(self, progress: float) -> float:
        """Weight u at ``progress`` (0 to 1) of a run: rises linearly from 0 over the warm-up."""
        return self.unsupervised * (min(1.0, progress / self.warmup) if self.warmup else 1.0)


# What the paper used on its two data sets; everything that is not named here is the default.
PRESETS: dict[str, dict[str, Any]] = {
    # IV-2: LA, AdamW, 9000 iterations, batch 4 (2 + 2), tau 0.85; learning rate from the authors' released code.
    "LA": {
        "epochs": 36,
        "tau": 0.85,
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "batch": 2,
        "unlabeled_batch": 2,
        "warmup": 0.0,
    },
    # IV-2: ACDC, SGD, 300 passes over the unlabeled slices (29 000 steps with 7 labeled patients), tau 0.95; batch 12 +
    # 12 from the authors' released code.
    "ACDC": {"epochs": 116, "tau": 0.95, "optimizer": "sgd", "batch": 12, "unlabeled_batch": 12, "warmup": 0.0},
}


def settings_from_name(trainer_name: str) -> Settings:
    """Read the settings out of a trainer name: optionally a preset, then tokens, each after an underscore.

    Raises:
        InputError: a token is unknown, malformed, out of range or given twice; the message lists the valid ones.
    """
    tokens = trainer_name.removeprefix(TRAINER_NAME).removeprefix("_").split("_")
    values: dict[str, Any] = {}
    if tokens[0] in PRESETS:
        values = dict(PRESETS[tokens.pop(0)])
    if tokens == [""]:
        tokens = []
    seen: set[str] = set()
    for token in tokens:
        setting, value = _read(token, trainer_name)
        if setting.name in seen:
            raise _bad_token(token, trainer_name, "given twice")
        seen.add(setting.name)
        values[setting.name] = value
    return replace(Settings(), **values)


def list_tokens() -> str:
    """The valid tokens, in one line."""
    return ", ".join([*(_describe(f) for f in fields(Settings)), *(f"{name} (preset, first)" for name in PRESETS)])


def _spell(setting: Field, value: Any) -> str:
    token = setting.metadata["token"]
    if setting.name == "epochs":
        return f"{value}{token}"
    if setting.metadata["kind"] is float:
        return token + np.format_float_positional(value, trim="-").replace(".", "p")
    return f"{token}{value}"


def _describe(setting: Field) -> str:
    meta = setting.metadata
    if setting.name == "epochs":
        return "<n>epochs"
    return meta["token"] + ("|".join(meta["choices"]) or ("<n>" if meta["kind"] is int else "<x>"))


def _read(token: str, trainer_name: str) -> tuple[Field, Any]:
    for setting in fields(Settings):
        text = _text_of(setting, token)
        if text is not None:
            value = setting.metadata["kind"](text.replace("p", ".") if setting.metadata["kind"] is float else text)
            _check_range(setting, value, token, trainer_name)
            return setting, value
    raise _bad_token(token, trainer_name, "unknown")


def _text_of(setting: Field, token: str) -> str | None:
    """The value's text if ``token`` spells ``setting``, else None."""
    meta = setting.metadata
    number = r"\d+" if meta["kind"] is int else r"\d+(?:p\d+)?"
    value = "|".join(meta["choices"]) or number
    pattern = f"({value}){meta['token']}" if setting.name == "epochs" else f"{meta['token']}({value})"
    match = re.fullmatch(pattern, token, flags=re.ASCII)
    return match.group(1) if match else None


def _check_range(setting: Field, value: Any, token: str, trainer_name: str) -> None:
    low, high = setting.metadata["low"], setting.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"from {low:g}" + (f" to {high:g}" if high is not None else "")
        raise _bad_token(token, trainer_name, f"value must be {limits}")


def _bad_token(token: str, trainer_name: str, why: str) -> InputError:
    fix = f"use the valid tokens: {list_tokens()}"
    return InputError(Problem("bad token", f"trainer name {trainer_name}", f"'{token}' {why}", fix))
