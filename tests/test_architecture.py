"""How the house is built: layers, one door, no foreign imports in the pure layer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, CONVERTERS = ROOT / "nnunetv2_crossmatch", ROOT / "dataset_conversion"
LAYERS = {
    0: "errors settings folders streams cutmix pseudo_labels losses lesson perturbation metrics scores intact "
    "finite interruption run_lock step_log workers".split(),
    1: "manifest raw_cases npz_cases unlabeled_folder unlabeled_case unlabeled views dataloading distributed network "
    "step checkpoints requirements run_record diagnosis".split(),
    2: "durable parallel trainer supervised".split(),
}
TOP = 3
OWN_FIGURE = "plots"  # the trainer draws its progress figure


def modules() -> dict[str, Path]:
    return {file.stem: file for file in sorted(PACKAGE.glob("*.py")) if file.stem != "__init__"}


def layer(module: str) -> int:
    return next((number for number, names in LAYERS.items() if module in names), TOP)


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
    """Modules of this package that ``file`` imports."""
    prefix = "nnunetv2_crossmatch."
    return {name.removeprefix(prefix).split(".")[0] for name in imported(file) if name.startswith(prefix)}


@pytest.mark.parametrize("module", modules())
def test_imports_point_downward(module):
    used = own(modules()[module]) & modules().keys()
    allowed = {other for other in used if layer(other) <= layer(module)}
    assert used - allowed <= ({OWN_FIGURE} if module == "trainer" else set())


@pytest.mark.parametrize("module", [name for name in modules() if layer(name) == 0])
def test_pure_modules_do_not_know_the_host(module):
    assert not {name for name in imported(modules()[module]) if name.split(".")[0] == "nnunetv2"}


@pytest.mark.parametrize("file", sorted(CONVERTERS.glob("*.py")), ids=lambda file: file.stem)
def test_converters_use_errors_folders_and_settings_only(file):
    assert own(file) <= {"errors", "folders", "settings", "dataset_conversion", "__version__"}


@pytest.mark.parametrize("file", [*PACKAGE.rglob("*.py"), *CONVERTERS.glob("*.py")], ids=lambda file: file.stem)
def test_every_module_opens_with_its_job(file):
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_the_door_is_one_file():
    assert len(list((PACKAGE / "ext_trainers").glob("*.py"))) == 1


def test_importing_the_package_imports_neither_torch_nor_the_host():
    code = "import sys, nnunetv2_crossmatch; print({'torch', 'nnunetv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
