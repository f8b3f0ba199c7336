"""Trainer names as the protocol uses them: read, changed, told apart.

Limit: the only module of the protocol that knows settings of a training; everything else passes names on.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from nnunetv2_crossmatch.methods.crossmatch import CrossMatchSettings
from nnunetv2_crossmatch.methods.names import settings_from_name

DEFAULT = "nnUNetTrainerCrossMatch"
"""The trainer whose steps name a budget."""
UNSUPERVISED = f"{DEFAULT}_unsup0"
"""Its step is the host's own."""
VALIDATION_ITERATIONS = 5  # informs the curves only, on training cases: with fold all there are no others
SUPERVISED = ("optimizer", "learning_rate", "batch")  # all that a supervised step depends on


def changed(trainer: str, **values: Any) -> str:
    """The trainer with other ``values`` of settings that every method has: length, seed, diagnosis, optimizer."""
    return replace(settings_from_name(trainer), **values).trainer_name


def shortly_validated(trainer: str) -> str:
    """The trainer with a short online validation, unless its name says how long."""
    given = settings_from_name(trainer).validation_iterations
    usual = settings_from_name(trainer.split("_")[0]).validation_iterations
    return changed(trainer, validation_iterations=VALIDATION_ITERATIONS if given == usual else given)


def control_of(trainer: str) -> str:
    """The supervised training beside ``trainer``: the host's step, same batch, optimizer and learning rate."""
    settings = settings_from_name(trainer)
    kept = {name: getattr(settings, name) for name in (*SUPERVISED, "validation_iterations")}
    return changed(UNSUPERVISED, **kept)


def without_length(trainer: str) -> str:
    """The name without length, seed and diagnosis."""
    default = settings_from_name(trainer.split("_")[0])
    lengths = {name: getattr(default, name) for name in ("epochs", "iterations", "validation_iterations")}
    return changed(trainer, seed=None, diagnose=0, **lengths)


def timed(trainer: str) -> str:
    """The name under which the time of a step on both kinds of images counts, whatever their weight if there is any."""
    usual = settings_from_name(trainer.split("_")[0]).unsupervised
    weight = usual if settings_from_name(trainer).unsupervised else 0.0
    return changed(without_length(trainer), labeled_only=0.0, warmup=0.4, unsupervised=weight)


def labeled_only(trainer: str) -> float:
    """Part of the steps that are on labeled images alone, and take the time of the control's."""
    return settings_from_name(trainer).labeled_only


def draws_students(trainer: str) -> bool:
    """Whether a step computes some of the method's students only, drawn anew."""
    settings = settings_from_name(trainer)
    return isinstance(settings, CrossMatchSettings) and settings.students < CrossMatchSettings().students


def method_of(trainer: str) -> str:
    """The method in a trainer's name: ``nnUNetTrainerCrossMatch_tau0p5`` -> ``crossmatch``."""
    found = re.match(r"nnUNetTrainer([A-Za-z0-9]+)", trainer)
    return found.group(1).lower() if found else trainer


def variant_of(trainer: str) -> str:
    """The tokens in which the trainer differs from its method's default, without those that the protocol sets."""
    tokens = without_length(trainer).split("_")[1:]
    return "_".join(token for token in tokens if token != "unsup0")


def epochs_of(trainer: str) -> int:
    """Length in epochs."""
    return settings_from_name(trainer).epochs


def iterations_of(trainer: str) -> int:
    """Steps per epoch."""
    return settings_from_name(trainer).iterations
