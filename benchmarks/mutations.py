"""Mutation check: makes one mistake at a time in a copy of the repository; the tests named beside it must fail.

    python benchmarks/mutations.py                  # all of mutation_list.py, hours
    python benchmarks/mutations.py --only CutMix    # those with this text (or one of several) in their name or file

Prints each mistake with the first test that fails; exit code 1 if no test fails for one of them, or if its tests fail
without it. The libraries are imported once: every run of the tests is a fork of this process. Limit: needs ``fork``.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
PACKAGE, CONVERTERS = "nnunetv2_crossmatch", "dataset_conversion"
COPIED = (PACKAGE, CONVERTERS, "tests", "benchmarks", "docs", "README.md", "pyproject.toml", "setup.cfg")
LIBRARIES = (
    "torch", "torch._dynamo", "numpy", "scipy.stats", "skimage.measure", "matplotlib.figure", "SimpleITK", "nibabel",
    "h5py", "jinja2", "hypothesis", "nnunetv2.run.run_training", "nnunetv2.inference.predict_from_raw_data",
)  # fmt: skip
TIME_LIMIT_S = 1800
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
"""Without bytecode: a mistake of equal length within a second would be taken for the file that was compiled before."""


class Outcome(NamedTuple):
    """Exit code of pytest, the first failure, and modules of the package that were imported from elsewhere."""

    code: int
    failure: str | None
    foreign: list[str]


@contextmanager
def copied_repository() -> Iterator[Path]:
    """A copy with the converters inside the package, as they are imported: no import leads out of it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "copy"
        root.mkdir()
        for source in (ROOT / name for name in COPIED):
            if source.is_dir():
                shutil.copytree(source, root / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
            else:
                shutil.copy(source, root)
        (root / CONVERTERS).rename(root / PACKAGE / CONVERTERS)
        (root / CONVERTERS).symlink_to(root / PACKAGE / CONVERTERS)
        yield root


@contextmanager
def mistake_made(root: Path, mutation: Mutation) -> Iterator[None]:
    """The mistake stands in the copy inside the block."""
    module = root / PACKAGE / mutation.file
    original = module.read_text()
    if original.count(mutation.old) != 1:
        sys.exit(f"{mutation.old!r} stands {original.count(mutation.old)} times in {mutation.file}")
    module.write_text(original.replace(mutation.old, mutation.new))
    try:
        yield
    finally:
        module.write_text(original)


def enter(root: Path) -> None:
    """Import the libraries, and let this process and those that tests start import the package from the copy."""
    os.environ |= ENVIRONMENT | {"PYTHONPATH": str(root)}
    sys.dont_write_bytecode = True
    sys.path = [str(root), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "benchmarks"))]
    sys.path.append(str(ROOT / "benchmarks"))  # processes that tests spawn import this file again
    os.chdir(root)
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


def foreign_modules(root: Path) -> list[str]:
    """Files of modules of the package that were not imported from ``root``."""
    files = (getattr(module, "__file__", None) for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE)
    return sorted({file for file in files if file and not Path(file).resolve().is_relative_to(root)})


def imported_from(root: Path, files: set[str]) -> list[str]:
    """Import every module that gets a mistake, here and in a new process; those that did not come from ``root``."""
    names = [".".join((PACKAGE, *Path(file).with_suffix("").parts)) for file in sorted(files)]
    found = [str(importlib.import_module(name).__file__) for name in names]
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {names}]"
    found += subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    return [file for file in found if file and not Path(file).resolve().is_relative_to(root / PACKAGE)]


class Session:
    """Plugin of pytest: remembers the first failure, and keeps built data sets for later runs.

    Args:
        kept: folder of data sets that are built once.
        names: of those that no mistake of this run can change.
    """

    def __init__(self, kept: Path, names: tuple[str, ...]) -> None:
        self.kept, self.names = kept, names
        self.failure: str | None = None

    def pytest_collection_finish(self) -> None:
        conftest: Any = sys.modules["conftest"]
        build_once = conftest.build_once

        def build_or_reuse(factory: Any, worker: str, name: str, make: Callable[..., None]) -> Any:
            kept = SimpleNamespace(getbasetemp=lambda: self.kept)
            return build_once(kept if name in self.names else factory, worker, name, make)

        conftest.build_once = build_or_reuse

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and self.failure is None:
            self.failure = report.nodeid


def run_tests(root: Path, mutation: Mutation) -> Outcome:
    """Run the tests of ``mutation`` in this process."""
    # nnU-Net alone makes the first data set; what preprocesses unlabeled cases may be what is wrong.
    names = ("tiny",) if mutation.file.startswith("data/") else ("tiny", "prepared")
    session = Session(root.parent, names)
    options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "-k", mutation.select]
    code = pytest.main([*options, str(root / "tests" / mutation.tests)], plugins=[session])
    return Outcome(int(code), session.failure, foreign_modules(root))


def in_fork(log: Path, function: Callable[..., Any], *arguments: Any, seconds: float = TIME_LIMIT_S) -> Any:
    """Result of ``function`` in a fork of this process, which writes to ``log``; None if it gave none in time."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(log, sender, function, arguments))
    process.start()
    sender.close()
    result = None
    try:
        if receiver.poll(seconds):
            result = receiver.recv()
    except EOFError:
        print(f"a run of the tests ended without a result:\n{log.read_text()[-1000:]}")
    finally:
        end_group(process)
    return result


def _send_result(log: Path, sender: Connection, function: Callable[..., Any], arguments: tuple) -> None:
    os.setsid()
    with log.open("w") as stream:
        for output in (sys.stdout, sys.stderr):
            output.flush()
            os.dup2(stream.fileno(), output.fileno())
    sender.send(function(*arguments))


def end_group(process: Any) -> None:
    """End ``process`` and what it started and left behind."""
    process.join(10)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()


def verdict(outcome: Outcome | None) -> tuple[bool, str]:
    """Whether the tests failed as they should, and how."""
    if outcome is None:
        return False, f"no result, or none within {TIME_LIMIT_S} seconds"
    if outcome.foreign:
        sys.exit(f"the tests imported {outcome.foreign[0]} instead of the copy")
    if outcome.failure is not None:
        return True, outcome.failure
    return False, "NOT NOTICED" if outcome.code == 0 else f"no result: pytest ended with code {outcome.code}"


def check(root: Path, mutations: Mapping[str, Mutation]) -> list[str]:
    """Run the tests without and with each of ``mutations``; names of those that were not noticed."""
    log, unnoticed = root.parent / "log", []
    without: dict[tuple[str, str], Outcome | None] = {}
    for name, mutation in mutations.items():
        tests = mutation.tests, mutation.select
        if tests not in without:
            without[tests] = in_fork(log, run_tests, root, mutation)
        outcome = without[tests]
        if outcome is not None and outcome.code == 0:
            with mistake_made(root, mutation):
                noticed, how = verdict(in_fork(log, run_tests, root, mutation))
        else:
            noticed, how = False, f"without the mistake: {verdict(outcome)[1]}"
        print(f"{name:60} {how}", flush=True)
        unnoticed += [] if noticed else [name]
    return unnoticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="mistakes with TEXT in name or file")
    only = parser.parse_args().only
    chosen = {name: one for text in only for name, one in MUTATIONS.items() if text in name or text in one.file}
    with copied_repository() as root:
        enter(root)
        foreign = in_fork(root.parent / "log", imported_from, root, {one.file for one in chosen.values()})
        if foreign is None or foreign:
            sys.exit(f"the modules are not imported from the copy: {foreign}")
        unnoticed = check(root, chosen)
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} mistakes noticed")
    sys.exit(bool(unnoticed))


if __name__ == "__main__":
    main()
