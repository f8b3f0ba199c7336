"""Everything that is to be measured on a GPU, in the order of its value, in as many minutes as there are.

    python benchmarks/gpu.py --minutes 15 --out OUT --data DATA
    python benchmarks/gpu.py --dry --out OUT
    python benchmarks/gpu.py --report OUT

Stages: a, the tests that need a GPU; b, time and memory of a step in every way; c, a profile of one step and whether it
waits for the loader; d, a training with supervised control in equal time, evaluated. A stage runs in a process of its
own with a time limit, and time that it leaves is the next one's. After every single result its JSON file in OUT is
whole, so that a machine may go at any moment; what a stage printed is in OUT/log.txt. OUT never holds more than a
handful of small files. SIGTERM ends the stage that runs, and the page OUT/report.md is written of what there is.

DATA holds one of these (without --data, volumes are generated):
  nnUNet_raw/ and nnUNet_preprocessed/ with planned and preprocessed data sets, unlabeled cases included;
  acdc_h5/patientXXX_frameYY.h5, the ACDC challenge as the semi-supervised literature uses it;
  la_h5/<case>/mri_norm2.h5, the left atrium challenge likewise.
The HDF5 files are converted, planned and preprocessed while stage a runs. Nothing is fetched from a network.

Limit: one GPU, Linux. This file and the page need Python alone; torch and nnU-Net are used in the stages' processes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder is there, not the repository

from benchmarks.gpu_stages.page import RUN, make_page, write_json  # noqa: E402

PREPARE = "prepare"
MINUTES, DRY_MINUTES = 15.0, 5.0
DRY_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "nnUNet_n_proc_DA": "1",
    "nnUNet_def_n_proc": "1",
}
GRACE_SECONDS = 5.0
"""From SIGTERM to SIGKILL of a stage's processes."""
TAIL = 2000
"""Characters of a stage's output that are kept beside its end."""


@dataclass(frozen=True)
class Stage:
    """A module of ``gpu_stages``; its share of the time, and the seconds below which it is not begun."""

    module: str
    share: float
    least: float


STAGES = {
    "a": Stage("cuda_tests", 1.2, 60),
    "b": Stage("step_times", 4.0, 45),
    "c": Stage("step_profile", 1.3, 30),
    "d": Stage("real_run", 5.0, 90),
}


@dataclass
class Session:
    """The stages' processes, one after the other, and what became of them in ``run.json``.

    Attributes:
        out: folder of the results.
        work: folder of everything else.
        deadline: of the whole, in seconds of the monotonic clock.
        options: handed to every stage.
        ended: by stage, how it ended.
    """

    out: Path
    work: Path
    deadline: float
    options: Sequence[str] = ()
    ended: dict[str, Any] = field(default_factory=dict)
    running: list[subprocess.Popen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source.mkdir(exist_ok=True)
        link = self.source / "benchmarks"
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / "benchmarks")

    @property
    def source(self) -> Path:
        """Where the stages are found and begin: beside ``benchmarks`` nothing, so that the package is that of site."""
        return self.work / "source"

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def limit(self, name: str, names: Sequence[str]) -> float:
        """Seconds for a stage: its share of what is left for it and those after it, its least at least."""
        later = sum(STAGES[one].share for one in names[names.index(name) :])
        stage = STAGES[name]
        return min(self.left(), max(stage.least, self.left() * stage.share / later))

    def start(self, name: str, module: str, seconds: float, log: IO[bytes]) -> subprocess.Popen:
        result = self.out / f"{name}.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"benchmarks.gpu_stages.{module}", "--result", str(result)]
        command += ["--work", str(self.work), "--seconds", f"{max(1.0, seconds - GRACE_SECONDS):.0f}", *self.options]
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment(),
            cwd=self.source,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def run(self, name: str, names: Sequence[str]) -> None:
        """Run a stage to its end or its limit."""
        stage, limit = STAGES[name], self.limit(name, names)
        if limit < stage.least / 2:
            return self.note(name, state="skipped", detail=f"{limit:.0f} s left")
        print(f"stage {name}, {stage.module}: at most {limit:.0f} s", flush=True)
        with (self.work / f"{name}.log").open("wb") as log:
            self.wait(name, self.start(name, stage.module, limit, log), limit)
        self.collect_log(name)

    def wait(self, name: str, process: subprocess.Popen, limit: float) -> None:
        """Wait for a stage's process; end it at its limit, and at a signal."""
        started, state = time.monotonic(), "interrupted"
        try:
            code = process.wait(max(0.1, limit))
            state = "finished" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            state = "out of time"
        finally:
            end(process)
            self.note(name, state=state, seconds=round(time.monotonic() - started, 1), limit=round(limit, 1))

    def note(self, name: str, **facts: Any) -> None:
        log = self.work / f"{name}.log"
        tail = log.read_text(errors="replace")[-TAIL:] if log.exists() else ""
        self.ended[name] = {**facts, "tail": tail}
        print(f"stage {name}: {facts['state']}", flush=True)
        write_json(self.out / RUN, {"dry": "--dry" in self.options, "stages": self.ended})

    def collect_log(self, name: str) -> None:
        with (self.out / "log.txt").open("ab") as log:
            log.write(f"===== stage {name}\n".encode() + (self.work / f"{name}.log").read_bytes())

    def environment(self) -> dict[str, str]:
        """For the stages: nnU-Net's folders in ``work``, its commands, and this repository."""
        folders = {name: str(self.work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        paths = [str(one) for one in (self.work / "site", self.source, ROOT / "benchmarks", ROOT / "tests")]
        inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        return {
            **os.environ,
            **folders,
            "PATH": os.pathsep.join([str(self.work / "bin"), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([*paths, *inherited]),
            "PYTHONUNBUFFERED": "1",
            **(DRY_VARIABLES if "--dry" in self.options else {}),
            "nnUNet_extTrainer": str(self.work / "site" / "nnunetv2_crossmatch" / "ext_trainers"),
        }

    def set_up(self) -> None:
        """The package and the console commands for the stages, in ``work``."""
        module = [sys.executable, "-m", "benchmarks.gpu_stages.commands", str(self.work)]
        done = subprocess.run(
            module, env=self.environment(), cwd=self.source, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            (self.work / "setup.log").write_text(done.stdout + done.stderr)
            self.note("setup", state=f"ended with code {done.returncode}")


def end(process: subprocess.Popen) -> None:
    """End a stage with everything that it started."""
    for name in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, name)
            process.wait(GRACE_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM becomes SystemExit inside the block."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_stages(session: Session, names: Sequence[str]) -> None:
    """Run the stages; the data are prepared beside the first one, and longer only if they are not ready then."""
    session.set_up()
    with (session.work / f"{PREPARE}.log").open("wb") as log:
        preparing = session.start(PREPARE, "prepare_data", session.left() / 2, log)
        for name in names:
            if name == "b" and set(names) & {"c", "d"}:
                with suppress(subprocess.TimeoutExpired):  # it would disturb the times
                    preparing.wait(session.left() / 5)
            if name in ("c", "d") and PREPARE not in session.ended:
                session.wait(PREPARE, preparing, session.left() / 2)
            session.run(name, names)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--minutes", type=float, help="for everything, the preparation included (default: 15, of a dry run 5)")
    add("--out", type=Path, metavar="FOLDER", help="folder of the results")
    add("--data", type=Path, metavar="FOLDER", help="see above")
    add("--work", type=Path, metavar="FOLDER", help="folder for data and models (default: a temporary one)")
    add("--stages", nargs="+", choices=tuple(STAGES), default=list(STAGES), help="default: all")
    add("--dry", action="store_true", help="every stage tiny, on the CPU, in less than 5 minutes")
    add("--report", type=Path, metavar="FOLDER", help="only print the page of the JSON files there")
    return result


def main() -> None:
    options = parser()
    arguments = options.parse_args()
    if arguments.report:
        print(make_page(arguments.report))
        return
    if not arguments.out:
        options.error("--out or --report is needed")
    minutes = arguments.minutes or (DRY_MINUTES if arguments.dry else MINUTES)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "log.txt").unlink(missing_ok=True)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="gpu_"))
    work.mkdir(parents=True, exist_ok=True)
    passed = (["--dry"] if arguments.dry else []) + (
        ["--data", str(arguments.data.resolve())] if arguments.data else []
    )
    session = Session(arguments.out.resolve(), work.resolve(), time.monotonic() + 60 * minutes, passed)
    with interruptible():
        try:
            run_stages(session, sorted(arguments.stages))
        finally:
            for process in session.running:
                end(process)
            (session.out / "report.md").write_text(make_page(session.out), encoding="utf-8")
            if not arguments.work:
                shutil.rmtree(work, ignore_errors=True)
    print(make_page(session.out))


if __name__ == "__main__":
    main()
