"""The order of the packages, no circles between modules, one entry point, and no method outside its place."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from nnunetv2_crossmatch.methods.names import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE, CONVERTERS = ROOT / "nnunetv2_crossmatch", ROOT / "dataset_conversion"
NAME = PACKAGE.name
MAY_IMPORT = {
    "errors": "",
    "folders": "errors",
    "json_files": "errors",
    "learning": "errors folders",
    "methods": "learning errors folders",
    "data": "errors folders json_files",
    "training": "methods learning data errors folders json_files",
    "evaluation": "training methods learning data errors folders json_files",
    "report": "evaluation training methods learning data errors folders json_files",
    "prediction": "training methods learning data ext_trainers errors folders json_files",
    "review": "prediction report evaluation training methods learning data errors folders json_files",
    "demo": "report evaluation training methods learning data ext_trainers errors folders json_files",
    "cli": "demo review prediction report evaluation training methods learning data ext_trainers errors folders "
    "json_files",
    "ext_trainers": "training errors",
}
"""What the modules of a package may import, beside their own package and the package's version."""

FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(file): file for file in FILES}


def imported(file: Path) -> set[str]:
    """Dotted names of everything that ``file`` imports, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(file: Path) -> set[str]:
    """Dotted names of this package's contents that ``file`` imports, without the package's name."""
    return {name.removeprefix(f"{NAME}.") for name in imported(file) if name.startswith(f"{NAME}.")}


def modules_used(file: Path) -> set[str]:
    """Modules of this package that ``file`` imports, or imports something from."""
    return {name if name in MODULES else name.rpartition(".")[0] for name in own(file)} & MODULES.keys()


def test_every_package_has_its_place_in_the_order():
    assert {name.split(".")[0] for name in MODULES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    package = module.split(".")[0]
    used = {name.split(".")[0] for name in own(MODULES[module])} - {package, "__version__"}
    assert used <= set(MAY_IMPORT[package].split())


def test_no_circles_between_modules():
    TopologicalSorter({name: modules_used(file) - {name} for name, file in MODULES.items()}).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("learning")])
def test_learning_does_not_know_the_host(module):
    assert not {name for name in imported(MODULES[module]) if name.split(".")[0] == "nnunetv2"}


@pytest.mark.parametrize("file", sorted(CONVERTERS.glob("*.py")), ids=lambda file: file.stem)
def test_converters_use_errors_folders_json_files_and_data_only(file):
    assert {name.split(".")[0] for name in own(file)} <= {
        "errors",
        "folders",
        "json_files",
        "data",
        "dataset_conversion",
        "__version__",
    }


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(("methods", "cli"))])
def test_no_trainer_is_named_outside_methods(module):
    """It would be the beginning of ``if method == ...``; the help texts of commands have examples."""
    assert not [each.Settings.trainer for each in METHODS if each.Settings.trainer in MODULES[module].read_text()]


def test_no_module_below_the_demo_imports_a_method_by_name():
    methods = {method.__module__.split(".")[-1] for method in METHODS}
    importers = {
        name
        for name, file in MODULES.items()
        if any(used.split(".")[1] in methods for used in modules_used(file) if used.startswith("methods."))
    }
    assert {name.split(".")[0] for name in importers} <= {"methods", "demo"}


@pytest.mark.parametrize("file", [*FILES, *CONVERTERS.glob("*.py")], ids=lambda file: file.stem)
def test_every_module_opens_with_its_job(file):
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_the_entry_point_is_one_file():
    assert len(list((PACKAGE / "ext_trainers").glob("*.py"))) == 1


def test_importing_the_package_imports_neither_torch_nor_the_host():
    code = f"import sys, {NAME}; print({{'torch', 'nnunetv2'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
