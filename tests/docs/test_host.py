"""docs/host.md names what the package needs of nnU-Net, and the installed one has it.

Limit: uses are found in the source by the name of the variable; an object of the host under another name is not seen.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch.training.supervised import SupervisedTrainer
from nnunetv2_crossmatch.training.trainer import nnUNetTrainerSemiSupervised

ROOT = Path(__file__).parents[2]
VARIABLES = {
    "plans_manager": PlansManager,
    "configuration_manager": ConfigurationManager,
    "label_manager": LabelManager,
    "predictor": nnUNetPredictor,
}
CLASSES = {one.__name__: one for one in (*VARIABLES.values(), nnUNetBaseDataset, nnUNetDataLoader)}
TRAINERS = (nnUNetTrainerSemiSupervised, SupervisedTrainer)


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "host.md").read_text(), re.M | re.S)
    return text


def rows(title: str) -> Iterator[tuple[list[str], list[str]]]:
    """Names in the first and in the second column of every row of a section."""
    for row in section(title).splitlines():
        if row.startswith("| `"):
            first, second = row.strip("|").split("|")[:2]
            yield re.findall(r"`([^`]+)`", first), re.findall(r"`([^`]+)`", second)


@cache
def sources() -> dict[Path, ast.Module]:
    files = [*(ROOT / "nnunetv2_crossmatch").rglob("*.py"), *(ROOT / "dataset_conversion").rglob("*.py")]
    return {file: ast.parse(file.read_text()) for file in files}


def attributes(of: type) -> set[str]:
    """Names that a class or its bases define, or set on ``self``."""
    texts = [inspect.getsource(one) for one in of.__mro__ if one is not object]
    return set(dir(of)) | {
        name for text in texts for name in re.findall(r"self\.(\w+)(?:\s*,\s*self\.\w+)*\s*[:=]", text)
    }


def listed_imports() -> dict[str, set[str]]:
    return {module: set(names) for (module,), names in rows("Imports")}


def test_every_listed_import_is_there():
    for module, names in listed_imports().items():
        assert not [name for name in names if not hasattr(importlib.import_module(module), name)], module


def test_every_import_of_the_host_is_listed():
    found: dict[str, set[str]] = {}
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nnunetv2."):
                found.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
    assert found == listed_imports()


def overridden() -> set[str]:
    """Methods of the host's trainer that a class of this package defines."""
    return {name for name in own_names() & set(vars(nnUNetTrainer)) if callable(getattr(nnUNetTrainer, name))}


def own_names() -> set[str]:
    """What the classes of this package define for their trainers."""
    bases = {
        one for trainer in TRAINERS for one in trainer.__mro__ if one.__module__.startswith("nnunetv2_crossmatch.")
    }
    return {name for one in bases for name in vars(one)}


def trainer_rows() -> tuple[set[str], set[str]]:
    """Listed methods that ours override, and listed names that ours use."""
    methods, uses = section("The trainer").split("Attributes and methods")
    names = [
        set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|([^|]*)\|", text, re.M)))) for text in (methods, uses)
    ]
    return names[0], names[1]


def test_every_listed_name_of_the_trainer_is_there():
    methods, uses = trainer_rows()
    assert methods <= set(vars(nnUNetTrainer))
    assert uses <= attributes(nnUNetTrainer)


def test_every_overridden_method_is_listed_and_no_other():
    assert overridden() == trainer_rows()[0]


def used_of_the_trainer() -> set[str]:
    """Attributes of the host's trainer that trainers of this package use and do not define."""
    inherited = attributes(nnUNetTrainer) - set(dir(object))
    used = {
        node.attr
        for file, tree in sources().items()
        if file.parent.name == "training"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "trainer")
    }
    return (used & inherited) - own_names()


def test_every_used_name_of_the_trainer_is_listed_and_no_other():
    assert used_of_the_trainer() == trainer_rows()[1]


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("method", sorted(overridden()))
def test_overriding_method_takes_what_the_host_passes(trainer, method):
    host, ours = (inspect.signature(getattr(one, method)).parameters for one in (nnUNetTrainer, trainer))
    anything = any(one.kind is one.VAR_POSITIONAL for one in ours.values())
    assert anything or list(ours)[: len(host)] == list(host)


@pytest.mark.parametrize("name", CLASSES)
def test_every_listed_name_of_the_other_classes_is_there(name):
    (names,) = [second for (first,), second in rows("Plans, labels, data, prediction") if first == name]
    assert set(names) <= attributes(CLASSES[name])


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_used_name_of_the_other_classes_is_listed(variable):
    of = VARIABLES[variable]
    (names,) = [second for (first,), second in rows("Plans, labels, data, prediction") if first == of.__name__]
    used = {
        node.attr
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and variable in (getattr(node.value, "id", ""), getattr(node.value, "attr", ""))
    }
    assert (used & attributes(of)) - set(names) == set()
