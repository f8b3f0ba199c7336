"""Check of ``plans.json`` and ``dataset.json``: their form, names that nnU-Net imports or calls, names used as paths.

A plans file names the network class and the classes of its layers, which nnU-Net locates with ``pydoc.locate`` in any
importable module and then calls with arguments from the same file. Other names it searches in its own packages, where
it also finds everything that these modules import.

Limit: of numbers only the sign is checked: a network can be too large for the memory.
"""

from __future__ import annotations

import copy
import inspect
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
from nnunetv2_crossmatch.json_files import check_form, read_json

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
PLANS_FORM = {
    "dataset_name": str,
    "plans_name": str,
    "configurations": {...: dict},
    "image_reader_writer": str,
    "transpose_forward": [int],
    "transpose_backward": [int],
    "original_median_spacing_after_transp": [float],
    "label_manager?": (str, None),
    "experiment_planner_used?": (str, None),
}
CONFIGURATION_FORM = {
    "data_identifier": str,
    "preprocessor_name": str,
    "batch_size": int,
    "patch_size": [int],
    "spacing": [float],
    "normalization_schemes": [str],
    "use_mask_for_norm": [bool],
    "previous_stage?": (str, None),
    **{name: str for name in NNUNET_PACKAGES if name.startswith("resampling")},
    **{f"{name}_kwargs": dict for name in NNUNET_PACKAGES if name.startswith("resampling")},
    "architecture": {"network_class_name": str, "arch_kwargs": dict, "_kw_requires_import": [str]},
}
DATASET_FORM = {
    "labels": {...: (int, str, [int])},
    "file_ending": str,
    "channel_names?": {...: str},
    "modality?": {...: str},
    "regions_class_order?": ([int], None),
    "dataset?": {...: {"images": [str], "label": str}},
}
CONTENT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, ArithmeticError)
"""What nnU-Net's classes for plans and labels raise where an entry is missing or is something else."""

RESTORE = "restore the file"
UNSAFE_FIX = f"use it only if you trust its author: export {TRUSTED_VARIABLE}=NAME, or --trust NAME of the export"


def check_plans_file(file: Path, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """Check a ``plans.json`` and return its content; see :func:`check_plans` and :func:`check_plans_form`.

    Raises:
        InputError: the file is unreadable, lacks what nnU-Net needs, or contains names that are not allowed.
    """
    plans: dict[str, Any] = read_json(file, dict, RESTORE, nan=True)
    check_plans(plans, file, trusted)
    check_plans_form(plans, file)
    return plans


def check_plans_form(plans: dict[str, Any], file: Path | str) -> None:
    """Check that ``plans`` have the entries that nnU-Net needs, in every configuration with what it inherits.

    Raises:
        InputError: an entry is missing or is something else.
    """
    try:
        check_form(plans, PLANS_FORM)
        manager = PlansManager(copy.deepcopy(plans))  # nnU-Net changes plans of its earlier versions in place
        check_form(manager.foreground_intensity_properties_per_channel, {...: dict})
        if not plans["configurations"]:
            raise ValueError("configurations is empty")
        for name in manager.available_configurations:
            configuration = manager.get_configuration(name).configuration
            check_form(configuration, CONFIGURATION_FORM)
            sizes = [*configuration["patch_size"], *configuration["spacing"], configuration["batch_size"]]
            if not all(size > 0 for size in sizes):
                raise ValueError("a size is not positive")
        if not sorted(plans["transpose_forward"]) == sorted(plans["transpose_backward"]) == [0, 1, 2]:
            raise ValueError("transpose_forward and transpose_backward do not name three axes")
    except (*CONTENT_ERRORS, RecursionError) as error:
        raise InputError(Problem("unusable plans", file, _reason(error), RESTORE)) from error


def _reason(error: BaseException) -> str:
    """One line that says what is wrong with the content."""
    text = " ".join(str(error).split())
    return f"{text} is missing" if isinstance(error, KeyError) else text or type(error).__name__


def check_dataset_name(file: Path) -> None:
    """Check that the plans in ``file`` name the data set in whose folder they are.

    nnU-Net takes all paths from this name, which after a data set was copied is still that of the original.

    Raises:
        InputError: they name another data set.
    """
    dataset, named = file.parent.name, read_json(file, dict, RESTORE, nan=True).get("dataset_name")
    if named != dataset:
        detail = f'"dataset_name" is {named}, but the file belongs to {dataset}'
        again = command_line("nnUNetv2_plan_and_preprocess", "-d", dataset_number(dataset))
        fix = f'set "dataset_name" to "{dataset}" in it, or {again}'
        raise InputError(Problem("plans of another data set", file, detail, fix))


def check_dataset_file(file: Path) -> dict[str, Any]:
    """Check a ``dataset.json`` and return its content.

    Raises:
        InputError: the file is unreadable, lacks what nnU-Net needs, or names something else than a reader of nnU-Net.
    """
    content: dict[str, Any] = read_json(file, dict, RESTORE, nan=True)
    check_reader_name(content, file)
    check_dataset_form(content, file)
    return content


def check_reader_name(content: Mapping[str, Any], file: Path) -> None:
    """Raise :class:`InputError` if the content of a ``dataset.json`` names something else than a reader of nnU-Net."""
    raise_if_any(list(_nnunet_problems(content, file, _allowed(()))))


def check_dataset_form(content: dict[str, Any], file: Path | str) -> None:
    """Check that the content of a ``dataset.json`` has the entries that nnU-Net needs, and usable labels.

    Raises:
        InputError: an entry is missing or is something else.
    """
    try:
        check_form(content, DATASET_FORM)
        if not (content.get("channel_names") or content.get("modality")):
            raise ValueError("channel_names is missing")
        if not is_file_name(content["file_ending"]):
            raise ValueError(f"file_ending is {content['file_ending']!r}")
        LabelManager(content["labels"], content.get("regions_class_order"))
    except (*CONTENT_ERRORS, RecursionError) as error:
        raise InputError(Problem("unusable dataset.json", file, _reason(error), RESTORE)) from error


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
    allowed = _allowed(trusted)
    problems: list[Problem] = []
    try:
        for entries in (plans, *plans.get("configurations", {}).values()):
            problems += [*_nnunet_problems(entries, file, allowed), *_path_problems(entries, file)]
            problems += _architecture_problems(entries.get("architecture", {}), file, allowed)
    except (*CONTENT_ERRORS, RecursionError) as error:
        raise InputError(Problem("unusable plans", file, _reason(error), RESTORE)) from error
    raise_if_any(list(dict.fromkeys(problems)))


def _allowed(trusted: Sequence[str]) -> tuple[str, ...]:
    return (*trusted, *filter(None, os.environ.get(TRUSTED_VARIABLE, "").split(",")))


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
            yield Problem("no plain name", file, f"{entry} is {value!r}", RESTORE)
