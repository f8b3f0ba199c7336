"""The times in docs/reliability.md are those of the code, and all of them."""

from __future__ import annotations

import re
from pathlib import Path

from nnunetv2_crossmatch.data import loader, signs_of_life, workers
from nnunetv2_crossmatch.evaluation import score_files
from nnunetv2_crossmatch.training import durable, interruption, lock

MODULES = (loader, signs_of_life, workers, score_files, durable, interruption, lock)
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nnunetv2_crossmatch"
ROW = re.compile(r"^\| .* \| ([\d.]+) \| `(\w+\.\w+\.\w+_SECONDS)` \|$", re.MULTILINE)
DEFINED = re.compile(r"^[A-Z_, ]*_SECONDS\b[^=]*= ", re.MULTILINE)


def test_documented_times_are_those_of_the_code() -> None:
    documented = {name: float(seconds) for seconds, name in ROW.findall((ROOT / "docs/reliability.md").read_text())}
    found = {
        f"{module.__name__.split('.', 1)[1]}.{name}": value
        for module in MODULES
        for name, value in vars(module).items()
        if name.endswith("_SECONDS")
    }
    assert documented == found


def test_no_module_has_a_time_that_is_not_looked_for() -> None:
    core = (file for folder in ("data", "evaluation", "training") for file in (PACKAGE / folder).rglob("*.py"))
    defining = {file.resolve() for file in core if DEFINED.search(file.read_text())}
    assert defining == {Path(str(module.__file__)).resolve() for module in MODULES}
