"""Check of names in ``plans.json`` and ``dataset.json`` that nnU-Net imports or calls, and of names used as paths.

A plans file names the network class and the classes of its layers, which nnU-Net locates with ``pydoc.locate`` in any
importable module and then calls with arguments from the same file. Other names it searches in its own packages, where
it also finds everything that these modules import.

Limit: checks names only. Neither sizes nor other values are checked: a network can be too large for the memory.
"""

from __future__ import annotations

import inspect
import json
import os
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_crossmatch.errors import InputError, Problem, command_line, raise_if_any
from nnunetv2_crossmatch.folders import dataset_number, is_file_name

TRUSTED_VARIABLE = "NNUNETV2_CROSSMATCH_TRUSTED_CLASSES"
"""Environment variable with names of own classes that plans may contain, separated by commas."""

NETWORK_PACKAGES = ("dynamic_network_architectures.",)
LAYER_PACKAGES = ("torch.nn.", "dynamic_network_architectures.")
NNUNET_PACKAGES = {
    "preprocessor_name": "preprocessing.preprocessors",
    "resampling_fn_data": "preprocessing.resampling",
    "resampling_fn_seg": "preprocessing.resampling",
    "resampling_fn_probabilities": "preprocessing.resampling",
    "normalization_schemes": "preprocessing.normalization",
    "image_reader_writer": "imageio",
    "overwrite_image_reader_writer": "imageio",
    "experiment_planner_used": "experiment_planning",
    "label_manager": "utilities.label_handling",
}
"""Entries that name something in a package of nnU-Net."""

PATH_ENTRIES = ("dataset_name", "plans_name", "data_identifier")
UNSAFE_FIX = f"use it only if you trust its author: export {TRUSTED_VARIABLE}=NAME, or --trust NAME of the export"


def check_plans_file(file: Path, trusted: Sequence[str] = ()) -> None:
    """Check a ``plans.json``; see :func:`check_plans`.

    Raises:
        InputError: the file is unreadable, or contains names that are not allowed.
    """
    check_plans(_read_json(file), file, trusted)


def check_dataset_name(file: Path) -> None:
    """Check that the plans in ``file`` name the data set in whose folder they are.

    nnU-Net takes all paths from this name, which after a data set was copied is still that of the original.

    Raises:
        InputError: they name another data set.
    """
    dataset, named = file.parent.name, _read_json(file).get("dataset_name")
    if named != dataset:
        detail = f'"dataset_name" is {named}, but the file belongs to {dataset}'
        again = command_line("nnUNetv2_plan_and_preprocess", "-d", dataset_number(dataset))
        fix = f'set "dataset_name" to "{dataset}" in it, or {again}'
        raise InputError(Problem("plans of another data set", file, detail, fix))


def check_dataset_file(file: Path) -> None:
    """Check the name of the reader in a ``dataset.json``.

    Raises:
        InputError: the file is unreadable, or names something else than a reader of nnU-Net.
    """
    raise_if_any(list(_nnunet_problems(_read_json(file), file)))


def label_manager_of(plans_manager: PlansManager, dataset_json: dict[str, Any]) -> LabelManager:
    """nnU-Net's label manager.

    Raises:
        InputError: it does not understand the labels, for example numbers by name and name by number exchanged.
    """
    try:
        return plans_manager.get_label_manager(dataset_json)
    except Exception as error:  # of any type, whatever stands there
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = 'write numbers by name, {"background": 0, "liver": 1, ...}, in the raw data set, too'
        raise InputError(Problem("labels not understood", "dataset.json", detail, fix)) from error


def check_plans(plans: Mapping[str, Any], file: Path | str, trusted: Sequence[str] = ()) -> None:
    """Check all names in ``plans`` that nnU-Net imports, calls, or uses as a path.

    Args:
        file: where the plans are from, for the message.
        trusted: names of own classes that are allowed besides those in :data:`TRUSTED_VARIABLE`.

    Raises:
        InputError: a network is no class of ``dynamic_network_architectures``, a layer none of that or of ``torch.nn``,
            another name is not defined in its package of nnU-Net, or a name contains a path.
    """
    allowed = (*trusted, *filter(None, os.environ.get(TRUSTED_VARIABLE, "").split(",")))
    problems: list[Problem] = []
    try:
        for entries in (plans, *plans.get("configurations", {}).values()):
            problems += [*_nnunet_problems(entries, file, allowed), *_path_problems(entries, file)]
            problems += _architecture_problems(entries.get("architecture", {}), file, allowed)
    except (AttributeError, TypeError) as error:
        raise InputError(Problem("unusable plans", file, str(error), "restore the file")) from error
    raise_if_any(list(dict.fromkeys(problems)))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise InputError(Problem("unreadable JSON", file, str(error), "restore the file")) from error
    return content


def _architecture_problems(
    architecture: Mapping[str, Any], file: Path | str, allowed: Sequence[str]
) -> Iterator[Problem]:
    network = architecture.get("network_class_name")
    if network is not None and network not in allowed and not _is_class(network, NETWORK_PACKAGES):
        detail = f"network_class_name is {network!r}, no network of dynamic_network_architectures"
        yield Problem("foreign class in the plans", file, detail, UNSAFE_FIX)
    for entry in architecture.get("_kw_requires_import", ()):
        layer = architecture.get("arch_kwargs", {}).get(entry)
        if layer is not None and layer not in allowed and not _is_class(layer, LAYER_PACKAGES):
            detail = f"{entry} is {layer!r}, no layer of torch.nn or dynamic_network_architectures"
            yield Problem("foreign class in the plans", file, detail, UNSAFE_FIX)


def _is_class(name: Any, packages: tuple[str, ...]) -> bool:
    """Whether ``name`` is a ``torch.nn.Module`` class that is defined in one of ``packages``.

    The prefix alone does not suffice: ``torch.nn.<module>.os.system`` would be located, too.
    """
    if not isinstance(name, str) or not name.startswith(packages):
        return False
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return False
    return inspect.isclass(found) and issubclass(found, nn.Module) and f"{found.__module__}.".startswith(packages)


def _nnunet_problems(entries: Mapping[str, Any], file: Path | str, allowed: Sequence[str] = ()) -> Iterator[Problem]:
    for entry, package in NNUNET_PACKAGES.items():
        value = entries.get(entry)
        for name in value if isinstance(value, list) else [value]:
            if name is not None and name not in allowed and not _is_in_nnunet(name, package):
                detail = f"{entry} is {name!r}, which nnunetv2.{package} does not define"
                yield Problem("foreign name", file, detail, UNSAFE_FIX)


def _is_in_nnunet(name: Any, package: str) -> bool:
    """Whether nnU-Net finds ``name`` in ``package``, and it is a class or function that is defined there."""
    if not isinstance(name, str) or not name.isidentifier():
        return False
    folder = Path(nnunetv2.__path__[0], *package.split("."))
    found = recursive_find_python_class(str(folder), name, f"nnunetv2.{package}")
    return (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__.startswith(f"nnunetv2.{package}")


def _path_problems(entries: Mapping[str, Any], file: Path | str) -> Iterator[Problem]:
    for entry in PATH_ENTRIES:
        value = entries.get(entry)
        if value is not None and not (isinstance(value, str) and is_file_name(value)):
            yield Problem("no plain name", file, f"{entry} is {value!r}", "restore the file")
