"""Trainers by name: ``nnUNetTrainer<Method>``, followed by tokens for settings other than the defaults.

Limit: makes classes; ``methods.names`` reads the names.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, cast

from nnunetv2_crossmatch.methods.names import PREFIX, method_of, nearest_names, settings_from_name
from nnunetv2_crossmatch.training.trainer import nnUNetTrainerSemiSupervised


@cache
def trainer_class(name: str) -> type[nnUNetTrainerSemiSupervised]:
    """The trainer of that name. One class per name, so that pickling by name finds it again.

    Raises:
        InputError: the name has a token that cannot be read.
        AttributeError: no method has a trainer of that name.
    """
    method = method_of(name)
    if method is None:
        _tell_nearest(name)
        raise AttributeError(f"module {__name__} has no attribute {name}")
    settings = settings_from_name(name)
    namespace = {"method_class": method, "settings": settings, "__module__": __name__, "__qualname__": name}
    return cast(type[nnUNetTrainerSemiSupervised], type(name, (nnUNetTrainerSemiSupervised,), namespace))


def _tell_nearest(name: str) -> None:
    """Print what may have been meant; no error, since another folder of trainers may have the name."""
    if name.startswith(PREFIX) and (nearest := nearest_names(name)):
        print(f"No trainer here is named {name}; the nearest names are {', '.join(nearest)}", file=sys.stderr)


def __getattr__(name: str) -> Any:
    return trainer_class(name)
