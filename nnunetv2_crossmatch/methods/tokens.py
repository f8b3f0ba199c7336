"""The grammar of trainer names: a method's name, optionally a preset, then settings as tokens after underscores.

A run is named by its settings, as the host names its variants: ``nnUNetTrainerCrossMatch_100epochs_eta0p2_tau0p95`` is
the default with three changes. ``p`` stands for the decimal point: a dot would break pickling by name and a double
underscore the host's folder names. Limit: spells and reads single settings; ``names`` knows which methods there are.
"""

from __future__ import annotations

import re
from dataclasses import Field, fields
from typing import Any

import numpy as np

ORDER = (
    "epochs iters valiters eta tau tauend weak strong drop levels temp absent classes criterion unsup warmup ramp "
    "cutmix labeledonly labeledmix geometry ema mirrorteacher keep align softlabels joint filter "
    "noise featdrop samples certain scales pretrain largest distance steepness contrast correlation bank "
    "views gpuviews batch ubatch exec students recompute opt lr seed verify diagnose"
).split()
"""Order of the tokens in a canonical name, which names results folders; tokens that are not listed come last."""


class BadTokenError(ValueError):
    """A token that no setting can be read from; says why."""


def ordered_fields(settings: Any) -> list[Field]:
    """Fields of a settings class or object in the order of their tokens."""
    rank = {token: index for index, token in enumerate(ORDER)}
    return sorted(fields(settings), key=lambda setting: rank.get(setting.metadata["token"], len(rank)))


def spelled(settings: Any) -> list[str]:
    """Tokens of all fields of ``settings`` that differ from the default."""
    return [
        _spell(setting, value)
        for setting in ordered_fields(settings)
        if (value := getattr(settings, setting.name)) != setting.default
    ]


def read_token(settings_class: type, token: str) -> tuple[str, Any]:
    """Name and value of the field that ``token`` spells.

    Raises:
        BadTokenError: no field has such a token, or its value is out of range.
    """
    for setting in fields(settings_class):
        text = _value_text(setting, token)
        if text is not None:
            value = setting.metadata["kind"](text.replace("p", ".") if setting.metadata["kind"] is float else text)
            _check_range(setting, value)
            return setting.name, value
    raise BadTokenError("unknown")


def pattern(setting: Field) -> str:
    """How the token of ``setting`` is written, e.g. ``tau<x>``, ``opt`` + ``sgd|adamw``, ``<n>epochs``."""
    meta = setting.metadata
    if setting.name == "epochs":
        return "<n>epochs"
    return meta["token"] + ("|".join(meta["choices"]) or ("<n>" if meta["kind"] is int else "<x>"))


def _spell(setting: Field, value: Any) -> str:
    token = setting.metadata["token"]
    if setting.name == "epochs":
        return f"{value}{token}"
    if setting.metadata["kind"] is float:
        return token + np.format_float_positional(value, trim="-").replace(".", "p")
    return f"{token}{value}"


def _value_text(setting: Field, token: str) -> str | None:
    """The value's text if ``token`` spells ``setting``, else None."""
    meta = setting.metadata
    number = r"\d+" if meta["kind"] is int else r"\d+(?:p\d+)?"
    value = "|".join(meta["choices"]) or number
    expression = f"({value}){meta['token']}" if setting.name == "epochs" else f"{meta['token']}({value})"
    match = re.fullmatch(expression, token, flags=re.ASCII)
    return match.group(1) if match else None


def _check_range(setting: Field, value: Any) -> None:
    low, high = setting.metadata["low"], setting.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"from {low:g}" + (f" to {high:g}" if high is not None else "")
        raise BadTokenError(f"value must be {limits}")
