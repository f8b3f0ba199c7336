"""How many mistakes do the tests notice? Draws some at random, makes one at a time, runs the nearest tests.

    python benchmarks/random_mutations.py --seed 1 --count 150 --out FILE   # hours; called again, it goes on
    python benchmarks/random_mutations.py --seed 1 --count 150 --list       # show them, run nothing
    python benchmarks/random_mutations.py --seed 1 --count 150 --out FILE --again --seconds 600   # the survivors

Prints the share noticed with its Wilson interval, and each survivor. A mistake that no input can show (equivalent)
is left out once it stands in ``equivalent_mutations.txt`` with the reason. Limit: the tests that reach a module by
imports, quick ones, those that name the place and nearest first, as far as the processor time goes; one that they
would notice later counts as missed.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import math
import re
import resource
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from mutation_operators import Mistake, drawn, mistakes_of
from mutations import PACKAGE, Outcome, Session, copied_repository, enter, foreign_modules, in_fork
from scipy.stats import binomtest

EQUIVALENT = Path(__file__).with_name("equivalent_mutations.txt")
CORE = ("methods", "learning", "training", "data", "evaluation", "prediction", "cli/model_export.py")
FOUND_BY_NAME = {"recursive_find_trainer_class_by_name": f"{PACKAGE}.training.named"}
"""What the host finds without an import, by the function that finds it."""
FIRST = "tests.training.test_train_step"
"""Compares a whole step with the slow statement; stands behind the files that import the module themselves."""
LEFT_OUT = ("tests.demo", "tests.docs", "tests.benchmarks", "tests.cli.test_end_to_end", "tests.test_architecture")
"""Dear ones, and one that fails in a copy: what only they notice counts as missed."""
CONFIDENCE = 0.95
WAITING = 5
"""A run of the tests may take this many times its processor time, for other work on the machine."""


class Result(NamedTuple):
    """A mistake and the first test that fails with it and not without it; None if none does."""

    mistake: Mistake
    failure: str | None


def core_files(package: Path) -> list[str]:
    """The files that get mistakes, relative to the package."""
    found = [
        file for name in CORE for file in ([package / name] if name.endswith(".py") else (package / name).rglob("*.py"))
    ]
    return sorted(str(file.relative_to(package)) for file in found)


def equivalents(file: Path = EQUIVALENT) -> dict[str, str]:
    """Reasons by name of the mistake; the file has ``name # reason`` in a line."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {name.strip(): reason.strip() for name, _, reason in (line.rpartition(" # ") for line in lines)}


class NearestTests:
    """Test files of a repository, ordered by how many imports lie between them and a module."""

    def __init__(self, root: Path) -> None:
        files = {dotted(file, root): file for folder in (PACKAGE, "tests") for file in (root / folder).rglob("*.py")}
        helpers = {name.removeprefix("tests."): name for name in files if name.count(".") == 1}
        self.files = {name: str(file) for name, file in files.items() if ".test_" in name}
        self.imports = {name: imported(file, files.keys(), helpers) for name, file in files.items()}

    def nearest(self, module: str) -> list[str]:
        """Files that reach ``module``: nearest first, then those of its package, then those that import little else."""
        distances = {name: self.distance(name, module) for name in self.files if not name.startswith(LEFT_OUT)}
        own = f"tests.{module.split('.')[1]}."
        order = sorted(
            (self._rank(name, distance), not name.startswith(own), len(self.imports[name]), name)
            for name, distance in distances.items()
            if distance is not None
        )
        return [self.files[name] for *_, name in order]

    @staticmethod
    def _rank(name: str, distance: int) -> int:
        return 2 if name == FIRST else distance + (distance > 1)

    def distance(self, test: str, module: str) -> int | None:
        """Imports from a test file to ``module``; helpers of the tests cost nothing. None if it is not reached."""
        queue, seen = deque([(test, 0)]), {test}
        while queue:
            name, steps = queue.popleft()
            if name == module:
                return steps
            for other in sorted(self.imports[name] - seen):
                seen.add(other)
                helper = other.startswith("tests.")
                (queue.appendleft if helper else queue.append)((other, steps + (not helper)))
        return None


def dotted(file: Path, root: Path) -> str:
    """Name of the module in ``file``."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path, known: object, helpers: dict[str, str]) -> set[str]:
    """Modules of the repository that a file imports, within functions, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            found |= {FOUND_BY_NAME[alias.name] for alias in node.names if alias.name in FOUND_BY_NAME}
    return {helpers.get(name, name) for name in found} & set(known)  # type: ignore[call-overload]


@contextmanager
def made(root: Path, mistake: Mistake) -> Iterator[None]:
    """The mistake stands in the copy inside the block."""
    module = root / PACKAGE / mistake.file
    original = module.read_bytes()
    module.write_bytes(mistake.made(original))
    try:
        yield
    finally:
        module.write_bytes(original)


class LikelyFirst:
    """Plugin of pytest: quick tests before those marked ``slow``; then by names in them, then by the files' order."""

    def __init__(self, files: Sequence[str], names: Sequence[str] = ()) -> None:
        self.places = {file: place for place, file in enumerate(files)}
        self.names = names

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(
            key=lambda item: (
                item.get_closest_marker("slow") is not None,
                -self.named(item),
                self.places[str(item.path)],
            )
        )

    def named(self, item: pytest.Item) -> int:
        """How many of the names stand in the test or in the values that it is called with."""
        text = (item.name + inspect.getsource(item.function)).lower()  # type: ignore[attr-defined]
        return sum(name in text for name in self.names)


def names_of(place: str) -> list[str]:
    """Names of a class and functions, as ``BCP.first_stage``, and their words of four letters or more, lowered."""
    found = [*place.split("."), *re.findall("[A-Z]?[a-z]{3,}", place)]
    return sorted({name.lower() for name in found if name})


def run_files(root: Path, files: Sequence[str], names: Sequence[str] = (), seconds: float = math.inf) -> Outcome:
    """Run test files in this process until one fails; after ``seconds`` of processor time the process is killed.

    Tests with more of ``names`` in them come first.
    """
    if math.isfinite(seconds):
        resource.setrlimit(resource.RLIMIT_CPU, (round(seconds), round(seconds)))
    session = Session(root.parent, ("tiny",))
    options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "-m", "not real_data"]
    code = pytest.main(
        [*options, *files], plugins=[session, LikelyFirst([test.split("::")[0] for test in files], names)]
    )
    return Outcome(int(code), session.failure, foreign_modules(root))


def tried(root: Path, tests: NearestTests, mistake: Mistake, seconds: float) -> Result:
    """What the tests say of a mistake within ``seconds`` of processor time."""
    files = tests.nearest(dotted(root / PACKAGE / mistake.file, root))
    if not files:
        return Result(mistake, None)
    log, names = root.parent / "log", names_of(mistake.inside)
    with made(root, mistake):
        outcome = in_fork(log, run_files, root, files, names, seconds, seconds=WAITING * seconds)
    if outcome is None:
        return Result(mistake, None)
    if outcome.foreign:
        sys.exit(f"the tests imported {outcome.foreign[0]} instead of the copy")
    if outcome.failure and not passes(root, outcome.failure):
        sys.exit(f"{outcome.failure} fails without any mistake, too")
    return Result(mistake, outcome.failure or (None if outcome.code == 0 else f"pytest ended with {outcome.code}"))


def passes(root: Path, test: str) -> bool:
    """Whether a test or test file passes in the copy as it is."""
    outcome = in_fork(root.parent / "log", run_files, root, [str(root / test)])
    return outcome is not None and outcome.code == 0


def summary(results: Sequence[Result]) -> str:
    """Share noticed with its interval, and the survivors."""
    noticed = sum(result.failure is not None for result in results)
    bounds = binomtest(noticed, len(results)).proportion_ci(CONFIDENCE, "wilson")
    share = f"{noticed} of {len(results)} noticed: {noticed / len(results):.0%}"
    survivors = [f"{one.mistake.name}  (line {one.mistake.line})" for one in results if one.failure is None]
    return "\n".join([f"{share} (95 % interval {bounds.low:.0%} to {bounds.high:.0%})", *survivors])


def chosen_mistakes(package: Path, files: Sequence[str], count: int, seed: int) -> list[Mistake]:
    """``count`` mistakes in ``files``; those that are known to be equivalent are not drawn."""
    known = equivalents()
    every = [one for file in files for one in mistakes_of(file, (package / file).read_bytes())]
    return drawn([one for one in every if one.name not in known], count, seed)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--count", type=int, default=150, help="mistakes (default: %(default)s)")
    result.add_argument(
        "--seconds", type=float, default=90, help="of processor time per mistake (default: %(default)s)"
    )
    result.add_argument(
        "--out", type=Path, metavar="FILE", help="write each result there; those in it are not run again"
    )
    result.add_argument("--again", action="store_true", help="also run those in FILE that were not noticed")
    result.add_argument("--list", action="store_true", help="show the mistakes, run nothing")
    return result


def main() -> None:
    options = parser().parse_args()
    with copied_repository() as root:
        files = core_files(root / PACKAGE)
        chosen = chosen_mistakes(root / PACKAGE, files, options.count, options.seed)
        if options.list:
            print(*(mistake.name for mistake in chosen), sep="\n")
            return
        enter(root)
        tests, known = NearestTests(root), read_results(options.out)
        waiting = waiting_names(chosen, known, options.again)
        for mistake in chosen:
            if mistake.name in waiting:
                known[mistake.name] = tried(root, tests, mistake, options.seconds).failure
                write_results(options.out, known)
            print(f"{known[mistake.name] or 'NOT NOTICED':90} {mistake.name[:200]}", flush=True)
    print(summary([Result(mistake, known[mistake.name]) for mistake in chosen]))


def waiting_names(chosen: Sequence[Mistake], known: Mapping[str, str | None], again: bool) -> set[str]:
    """Names of those without a result; with ``again`` also of those that were not noticed."""
    return {one.name for one in chosen if one.name not in known or (again and known[one.name] is None)}


def read_results(file: Path | None) -> dict[str, str | None]:
    """The first failure by name of the mistake, of an earlier call."""
    return json.loads(file.read_text()) if file and file.exists() else {}


def write_results(file: Path | None, known: dict[str, str | None]) -> None:
    """Keep them for a later call."""
    if file:
        file.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
