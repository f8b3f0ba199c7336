"""Trainers by name: ``nnUNetTrainer<Method>``, followed by tokens for settings other than the defaults.

Limit: makes classes; ``methods.names`` reads the names.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from functools import cache
from typing import Any, cast

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.errors import InputError, Problem
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


def check_found(name: str) -> None:
    """Do nothing if nnU-Net finds a trainer of that name: its own, or one in the folders of ``nnUNet_extTrainer``.

    Raises:
        InputError: it finds none.
    """
    try:
        with redirect_stdout(io.StringIO()):  # it tells where it looks
            recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        detail, fix = str(error).splitlines()[0], "use the name of an existing trainer"
        raise InputError(Problem("unknown trainer", f"trainer name {name}", detail, fix)) from None


def _tell_nearest(name: str) -> None:
    """Print what may have been meant; no error, since another folder of trainers may have the name."""
    if name.startswith(PREFIX) and (nearest := nearest_names(name)):
        print(f"No trainer here is named {name}; the nearest names are {', '.join(nearest)}", file=sys.stderr)


def __getattr__(name: str) -> Any:
    return trainer_class(name)
