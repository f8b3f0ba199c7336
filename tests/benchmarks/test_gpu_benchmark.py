"""``benchmarks/gpu.py``: the whole command tiny on the CPU, what it survives, and its page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_stages import page, prepare_data
from benchmarks.gpu_stages.sheet import Sheet

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import step_traffic  # noqa: E402
import step_ways  # noqa: E402

from benchmarks.gpu_stages import step_profile, step_times  # noqa: E402


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session of a minute whose stages are the code in ``stages``, by name."""
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    stages = tmp_path / "code" / "benchmarks"
    (stages / "gpu_stages").mkdir(parents=True)
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "code")
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 0.5)
    made = gpu.Session(tmp_path / "out", tmp_path / "work", time.monotonic() + 60)
    monkeypatch.setattr(made, "set_up", lambda: None)
    return made


def write_stage(session: gpu.Session, module: str, code: str) -> None:
    """A stage that writes one result and then runs ``code``."""
    head = "import json, pathlib, sys, time, os, signal\n"
    head += "file = pathlib.Path(sys.argv[sys.argv.index('--result') + 1])\n"
    head += f"file.write_text(json.dumps({{'written': '{module}'}}))\nprint('seen in the log', flush=True)\n"
    (Path(gpu.ROOT) / "benchmarks" / "gpu_stages" / f"{module}.py").write_text(head + code + "\n")


def states(session: gpu.Session) -> dict[str, str]:
    run = json.loads((session.out / gpu.RUN).read_text())
    return {name: facts["state"] for name, facts in run["stages"].items()}


def test_a_stage_that_crashes_or_takes_too_long_leaves_its_results_and_the_others_run(session, monkeypatch):
    monkeypatch.setattr(session, "limit", lambda name, names: 3.0 if name == "b" else 20.0)
    for name, stage in list(gpu.STAGES.items()):
        monkeypatch.setitem(gpu.STAGES, name, replace(stage, least=1))
    write_stage(session, "prepare_data", "")
    write_stage(session, "cuda_tests", "os.kill(os.getpid(), signal.SIGSEGV)")
    write_stage(session, "step_times", "time.sleep(60)")
    write_stage(session, "step_profile", "raise ValueError('broken')")
    write_stage(session, "real_run", "")
    gpu.run_stages(session, list("abcd"))
    ends = {"a": "ended with code -11", "b": "out of time", "c": "ended with code 1", "d": "finished"}
    assert states(session) == {"prepare": "finished", **ends}
    for name, module in zip("abcd", ("cuda_tests", "step_times", "step_profile", "real_run"), strict=True):
        assert json.loads((session.out / f"{name}.json").read_text()) == {"written": module}
    log = (session.out / "log.txt").read_text()
    assert log.count("seen in the log") == 4
    assert "ValueError: broken" in log
    assert len(list(session.out.iterdir())) <= 8  # few files, whatever fetches them


def test_time_that_a_stage_leaves_is_the_next_ones_and_without_time_it_is_not_begun(session):
    session.deadline = time.monotonic() + 900
    limits = {name: session.limit(name, list("abcd")) for name in "abcd"}
    assert limits["a"] == pytest.approx(900 * 1.2 / 11.5, abs=1)
    assert limits["d"] == pytest.approx(900, abs=1)
    session.deadline = time.monotonic() + 180  # three minutes: the least of the first stages
    assert [session.limit(name, list("abcd")) for name in "ab"] == pytest.approx([60, 69], abs=1)
    session.deadline = time.monotonic() + 20
    session.run("d", list("abcd"))
    assert states(session) == {"d": "skipped"}


def test_a_dry_run_measures_steps_and_is_ended_by_a_signal_with_its_page(tmp_path):
    """Stage b alone, interrupted as soon as the first step is measured; without a compiler in reach."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry", "--stages", "b", "--out", str(tmp_path)]
    environment = {**os.environ, "CC": "/nowhere", "TMPDIR": str(tmp_path.parent)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        results, end = tmp_path / "b.json", time.monotonic() + 240
        while not page.measured(page.read(results)) and time.monotonic() < end and run.poll() is None:
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert json.loads((tmp_path / gpu.RUN).read_text())["stages"]["b"]["state"] == "interrupted"
    text = (tmp_path / "report.md").read_text()
    assert "A dry run on the CPU" in text
    assert "| 2d 16 x 16, batch 2, amp, supervised |" in text
    assert not list(tmp_path.parent.glob("gpu_*"))


def test_an_error_of_one_result_is_a_result_and_the_next_one_follows(tmp_path):
    sheet = Sheet(tmp_path / "b.json", 60)

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore lines")

    sheet.attempt("first", broken)
    sheet.attempt("second", lambda: 2)
    sheet.attempt("third", lambda: 3, least=1000)
    read = json.loads((tmp_path / "b.json").read_text())
    assert read["first"] == {"error": "RuntimeError: CUDA error: an illegal memory access"}
    assert read["second"] == 2
    assert "s left" in read["third"]["skipped"]


def test_the_page_tells_ratios_shares_of_the_rates_and_goals(tmp_path):
    case, row = "3d 112 x 112 x 80, batch 2, amp", {"ms_min": 1.0, "ms_max": 300.0, "first_s": 1.0}
    times = {"supervised": (30.0, 4000.0), "stacked": (210.0, 22000.0), "sequential": (200.0, 5000.0)}
    rows = {f"{case}, {way}": {"ms": ms, "peak_mib": mib, **row} for way, (ms, mib) in times.items()}
    rows[f"{case}, released"] = {"error": "OutOfMemoryError: CUDA out of memory"}
    rates = {"float16 TFLOP/s": 800.0, "GB/s": 3000.0}
    page.write_json(tmp_path / "b.json", {"machine": {"device": "X"}, "rates": rates, **rows})
    text = page.make_page(tmp_path)
    work = page.work_of(f"{case}, stacked")
    share = work["gflop"] / 1000 / 0.21 / 800
    assert f"| {case}, stacked | 210.0 | 1 | 300.0 | 7 | {work['gflop'] / 2711.4:.3g} | 22000.0 |" in text
    assert f"| {share:.3g} |" in text
    assert f"stacked, time ratio over FLOP ratio (goal: at most 1.10): {7 / (work['gflop'] / 2711.4):.2f}" in text
    assert "sequential over supervised, memory (goal: at most 1.5): 1.25" in text
    assert "released: OutOfMemoryError" in text


def test_the_work_of_a_step_that_the_page_divides_by_is_that_of_the_benchmark():
    counted = json.loads(page.WORK.read_text())
    cases = {case.title: case for case in (step_ways.GENERIC[0], step_ways.GENERIC[2])}
    assert counted.keys() == cases.keys()
    assert all(set(step_times.MAIN) <= rows.keys() for rows in counted.values())


def test_bytes_count_what_is_read_and_written_and_no_views():
    with step_traffic.TrafficCounter() as counter:
        a = torch.ones(10, 10)
        a.t().view(-1) if a.t().is_contiguous() else a.t()[0:2]
        a + a
    assert (counter.operations, counter.bytes) == (2, 400 + 3 * 400)


def test_the_time_without_kernels_is_what_no_kernel_covers():
    assert step_profile.busy_microseconds([(0, 4), (2, 6), (10, 11), (3, 5)]) == 7


@pytest.mark.parametrize(("cases", "scored", "labeled"), [(5, 1, 2), (10, 2, 4), (80, 16, 8)])
def test_volumes_are_divided_into_labeled_unlabeled_and_scored_ones(tmp_path, cases, scored, labeled):
    for number in range(cases):
        (tmp_path / f"case{number:02d}").mkdir()
        (tmp_path / f"case{number:02d}" / "mri_norm2.h5").touch()
    lists = json.loads(prepare_data.lists_of(tmp_path, tmp_path / "lists.json").read_text())
    assert (len(lists["val"]), len(lists["train"])) == (scored, cases - scored)
    assert [len(names) for names in lists["labeled"].values()] == [labeled]


def test_compiled_steps_of_every_case_run_what_was_compiled():
    """The second case, too: variants of the first one count no more; network and Dice are compiled, as in training."""
    from torch._dynamo.testing import CompileCounterWithBackend

    graphs = []
    for patch in ((16, 16), (8, 8)):
        counter = CompileCounterWithBackend("eager")
        case = step_ways.BenchmarkCase("2d", patch, 2, (2, 4))
        bench = step_ways.StepBenchmark(case, torch.device("cpu"), False, True, counter)
        for _ in range(2):
            bench.run_step("supervised")
        graphs.append(counter.frame_count)
    assert graphs == [graphs[0]] * 2
    assert graphs[0] >= 2
    assert torch._dynamo.config.cache_size_limit == 64
    assert torch.backends.cudnn.benchmark
