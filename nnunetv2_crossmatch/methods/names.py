"""Which methods there are, and the method and settings that a trainer's name stands for.

Limit: names only; ``training`` makes trainers of them.
"""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.learning.step import Task
from nnunetv2_crossmatch.methods.bcp import BCP
from nnunetv2_crossmatch.methods.caml import CAML
from nnunetv2_crossmatch.methods.cps import CPS
from nnunetv2_crossmatch.methods.crossmatch import CrossMatch
from nnunetv2_crossmatch.methods.dmd import DMD
from nnunetv2_crossmatch.methods.dtc import DTC
from nnunetv2_crossmatch.methods.filtermatch import FilterMatch
from nnunetv2_crossmatch.methods.fixmatch import FixMatch
from nnunetv2_crossmatch.methods.mcnet import MCNet
from nnunetv2_crossmatch.methods.mcnet_plus import MCNetPlus
from nnunetv2_crossmatch.methods.mean_teacher import MeanTeacher
from nnunetv2_crossmatch.methods.method import Method
from nnunetv2_crossmatch.methods.sassnet import SASSNet
from nnunetv2_crossmatch.methods.settings import CommonSettings
from nnunetv2_crossmatch.methods.ssnet import SSNet
from nnunetv2_crossmatch.methods.tokens import BadTokenError, ordered_fields, pattern, read_token
from nnunetv2_crossmatch.methods.uamt import UAMT
from nnunetv2_crossmatch.methods.unimatch import UniMatch
from nnunetv2_crossmatch.methods.urpc import URPC

METHODS: list[type[Method]] = [
    *(CrossMatch, FixMatch, UniMatch, FilterMatch),
    *(MeanTeacher, CPS, DMD, UAMT, URPC, BCP, MCNet, MCNetPlus, DTC, SASSNet, SSNet, CAML),
]
PREFIX = "nnUNetTrainer"


def method_of(trainer_name: str) -> type[Method] | None:
    """The method whose trainer has that name, with or without tokens; None if it is none of ours."""
    return next((method for method in METHODS if method.Settings.trainer == trainer_name.split("_")[0]), None)


def settings_from_name(trainer_name: str) -> CommonSettings:
    """The settings in a trainer's name: optionally a preset, then tokens, each after an underscore.

    Raises:
        InputError: the trainer is none of ours, or a token is unknown, malformed, out of range or given twice; the
            message lists the valid ones.
    """
    method = method_of(trainer_name)
    if method is None:
        known = ", ".join(nearest_names(trainer_name) or [each.Settings.trainer for each in METHODS])
        raise InputError(Problem("unknown trainer", f"trainer name {trainer_name}", "none of ours", f"use {known}"))
    tokens = [] if trainer_name == f"{method.Settings.trainer}_" else trainer_name.split("_")[1:]
    values: dict[str, Any] = {}
    if tokens and tokens[0] in method.presets:
        values = dict(method.presets[tokens.pop(0)])
    given: set[str] = set()
    for token in tokens:
        name, value = _read(method, token, trainer_name)
        if name in given:
            raise _bad_token(method, token, trainer_name, "given twice")
        given.add(name)
        values[name] = value
    return replace(method.Settings(), **values)


def nearest_names(trainer_name: str) -> list[str]:
    """Trainers of ours that ``trainer_name``, with or without tokens, may have meant, the nearest first."""
    known = {each.Settings.trainer.removeprefix(PREFIX).lower(): each.Settings.trainer for each in METHODS}
    wanted = trainer_name.split("_")[0].removeprefix(PREFIX).lower()
    return [known[name] for name in get_close_matches(wanted, known)]


def list_methods() -> list[str]:
    """A line per method: trainer, cost of a step, what is learned, presets, and tokens that not every method has."""
    common = {setting.name for setting in fields(CommonSettings)}
    lines = []
    for method in METHODS:
        settings = method.Settings()
        tokens = [pattern(setting) for setting in ordered_fields(settings) if setting.name not in common]
        own = ["|".join(method.presets), *tokens] if method.presets else tokens
        cost = method(settings, Task(2)).passes().cost
        lines.append(f"{settings.trainer}  {cost:.1f}x  {method.summary}  [{' '.join(own)}]")
    return lines


def list_tokens(method: type[Method]) -> str:
    """The valid tokens of a method, in one line."""
    settings = map(pattern, ordered_fields(method.Settings))
    return ", ".join([*settings, *(f"{name} (preset, first)" for name in method.presets)])


def _read(method: type[Method], token: str, trainer_name: str) -> tuple[str, Any]:
    try:
        return read_token(method.Settings, token)
    except BadTokenError as error:
        others = [each.__name__ for each in METHODS if _is_token_of(each, token)]
        why = f"is a token of {', '.join(others)} only" if others else str(error)
        raise _bad_token(method, token, trainer_name, why) from error


def _is_token_of(method: type[Method], token: str) -> bool:
    try:
        read_token(method.Settings, token)
    except BadTokenError:
        return False
    return True


def _bad_token(method: type[Method], token: str, trainer_name: str, why: str) -> InputError:
    fix = f"use the valid tokens: {list_tokens(method)}"
    return InputError(Problem("bad token", f"trainer name {trainer_name}", f"'{token}' {why}", fix))
