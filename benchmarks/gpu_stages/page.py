"""The page of what the stages measured, of their JSON files alone.

Limit: Python's own library; a file that is missing, and a result that is an error, is said so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RUN = "run.json"
WORK = Path(__file__).with_name("work.json")
"""GFLOP and GB of a step by case and way, as ``step_traffic`` counted them."""
TITLES = {
    "a": "a. Tests that need a GPU",
    "b": "b. Time and memory of a step",
    "c": "c. Profile and loader",
    "d": "d. A training",
}
PAPER_RATIO = 9.5  # CrossMatch over supervised, Table III
PRECISION = {"fp32": "float32 TFLOP/s"}  # of a mode; the others are mixed


def write_json(file: Path, content: Any) -> None:
    """Write the file whole or not at all."""
    temporary = file.with_name(f"{file.name}.partial")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, file)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def make_page(folder: Path) -> str:
    """Markdown of all results in ``folder``."""
    run = read(folder / RUN)
    lines = ["# One GPU", ""]
    if run.get("dry"):
        lines += ["A dry run on the CPU: every number shows that the command works, and nothing else.", ""]
    lines += table(("stage", "end", "s", "limit"), ends(run))
    for name, section in (("a", tests), ("b", steps), ("c", profile), ("d", training)):
        lines += ["", f"## {TITLES[name]}", "", *(section(read(folder / f"{name}.json")) or ["nothing"])]
    return "\n".join(lines) + "\n"


def ends(run: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, facts in run.get("stages", {}).items():
        yield name, facts["state"], facts.get("seconds", ""), facts.get("limit", "")


def table(head: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> list[str]:
    """A Markdown table."""
    body = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return "" if value is None else str(value)


def tests(results: Mapping[str, Any]) -> list[str]:
    outcomes = {name: end for name, end in results.items() if isinstance(end, str)}
    counts = {end: list(outcomes.values()).count(end) for end in dict.fromkeys(outcomes.values())}
    told = [f"- {end}: {name}" for name, end in outcomes.items() if end != "PASSED"]
    return [", ".join(f"{count} {end.lower()}" for end, count in counts.items()), "", *told] if outcomes else []


def failures(results: Mapping[str, Any]) -> list[str]:
    """Results that are none: errors and what there was no time for."""
    bad = {name: one for name, one in results.items() if isinstance(one, dict) and {"error", "skipped"} & one.keys()}
    return [f"- {name}: {one.get('error') or 'skipped, ' + one['skipped']}" for name, one in bad.items()]


def steps(results: Mapping[str, Any]) -> list[str]:
    if not results:
        return []
    rates = results.get("rates") or {}
    facts = [
        f"- {name}: {cell(value)}" for what in ("machine", "rates") for name, value in results.get(what, {}).items()
    ]
    head = (
        "step",
        "ms",
        "fastest",
        "slowest",
        "ratio",
        "FLOP ratio",
        "MiB",
        "GFLOP",
        "of peak FLOP/s",
        "GB",
        "of peak GB/s",
    )
    return [
        *facts, "", *table(head, step_rows(results, rates)), "",
        f"The paper's CrossMatch step takes {PAPER_RATIO} times a supervised one. Bytes: of uncompiled steps.", "",
        *goals(results), "", *failures(results),
    ]  # fmt: skip


def step_rows(results: Mapping[str, Any], rates: Mapping[str, float]) -> Iterator[tuple[Any, ...]]:
    for name, row in measured(results).items():
        base, mode = supervised_of(results, name), name.rsplit(", ", 2)[-2]
        peak = rates.get(PRECISION.get(mode, "float16 TFLOP/s"))
        work, of_base = work_of(name), work_of(name.rpartition(", ")[0] + ", supervised")
        yield (
            name, row["ms"], row["ms_min"], row["ms_max"], row["ms"] / base["ms"] if base else None,
            share(work.get("gflop"), of_base.get("gflop")), row["peak_mib"],
            work.get("gflop"), share(work.get("gflop"), peak and peak * row["ms"]),
            work.get("gbyte"), share(work.get("gbyte"), "GB/s" in rates and rates["GB/s"] * row["ms"] / 1000),
        )  # fmt: skip


def share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part and whole else None


def work_of(name: str) -> dict[str, float]:
    """GFLOP and, in the precision of the mode, GB of a step; empty where they were not counted."""
    case, mode, way = name.rsplit(", ", 2)
    counted = read(WORK).get(case, {}).get(way, {})
    return {"gflop": counted["gflop"], "gbyte": counted["gbyte_fp32" if mode == "fp32" else "gbyte"]} if counted else {}


def measured(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that were measured, by case, mode and way."""
    return {name: row for name, row in results.items() if isinstance(row, dict) and "ms" in row}


def supervised_of(results: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The supervised step of the same case and mode."""
    return measured(results).get(name.rpartition(", ")[0] + ", supervised")


def goals(results: Mapping[str, Any]) -> list[str]:
    """What the goals are about: times over FLOPs, sequential memory, the released schedule."""
    lines, rows = [], measured(results)
    for mode in dict.fromkeys(name.rpartition(", ")[0] for name in rows):
        base, stacked, sequential, released = (
            rows.get(f"{mode}, {way}", {}) for way in ("supervised", "stacked", "sequential", "released")
        )
        flops = share(work_of(f"{mode}, stacked").get("gflop"), work_of(f"{mode}, supervised").get("gflop"))
        found = {
            "stacked, time ratio over FLOP ratio (goal: at most 1.10)": share(ratio("ms", stacked, base), flops),
            "sequential over stacked, time": ratio("ms", sequential, stacked),
            "sequential over supervised, memory (goal: at most 1.5)": ratio("peak_mib", sequential, base),
            "released schedule over stacked, time (goal: at least 4)": ratio("ms", released, stacked),
        }
        lines += [f"- {mode}: {what}: {value:.2f}" for what, value in found.items() if value]
    return lines


def ratio(what: str, row: Mapping[str, Any], base: Mapping[str, Any]) -> float | None:
    return share(row.get(what), base.get(what))


def profile(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, one in results.items():
        if not isinstance(one, dict):
            continue
        if "kernels" in one:
            kernels = ((kernel["name"], kernel["share"], kernel["calls"]) for kernel in one["kernels"])
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in one["shares"].items())
            waits = ", ".join(f"{what} {count:.1f}" for what, count in one["waits per step"].items()) or "none"
            lines += [
                f"**{name}**: {one['ms']:.1f} ms a step while profiled, {one['kernels per step']:.0f} kernels, "
                f"no kernel for {one['idle share']:.0%} of the time; {shares}. Waits per step: {waits}.", "",
                *table(("kernel", "share", "calls a step"), kernels),
                "",
            ]  # fmt: skip
        elif "wait_ms" in one:
            lines += [
                f"**{name}**: patch {one['patch']}, batch {one['batch']}, {one['workers']} workers, "
                f"stacked {one['stacked']}: step {one['step_ms']:.1f} ms, waiting for the loader "
                f"{one['wait_ms']:.1f} ms (medians), {one['waiting share']:.1%} of the time.", "",
            ]  # fmt: skip
    return [*lines, *failures(results)]


def training(results: Mapping[str, Any]) -> list[str]:
    if not results:
        return []
    lines = [f"Data: {results.get('data')}; compiled: {results.get('compiled')}.", ""]
    rows = {name: one for name, one in results.items() if isinstance(one, dict) and "scores" in one}
    head = ("row", "steps", "ms a step", "training s", "prediction s", "cases", "class", "Dice", "Jaccard")
    lines += table(head, training_rows(rows)) if rows else []
    return [*lines, "", *failures(results)]


def training_rows(rows: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, one in rows.items():
        for group, score in one["scores"].items():
            yield (
                name, one["steps"], one["step_ms"], one["training_s"], one["prediction_s"], one["cases"], group,
                score["dice"], score["jaccard"],
            )  # fmt: skip
