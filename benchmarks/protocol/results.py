"""The results of a protocol in one place: table over seeds, curves, environment, and the published rows beside them.

    python -m benchmarks.protocol.results --folder OUT

Limit: reads what the commands of the protocol left in OUT; a run without scores is listed as missing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.protocol.request import RECORD, SOURCES, Request, read_request
from benchmarks.protocol.rows import Run
from benchmarks.protocol.score import LITERATURE, UNMIRRORED
from benchmarks.protocol.steps import Protocol, read_runs, trainings_of
from benchmarks.protocol.timing import commit, threads
from nnunetv2_crossmatch.errors import command
from nnunetv2_crossmatch.evaluation.published import (
    DISTANCE_CAVEAT,
    PROTOCOL_CAVEATS,
    PUBLISHED_TEST_CASES,
    SINGLE_RUN_CAVEAT,
    published_rows,
)
from nnunetv2_crossmatch.evaluation.score_files import (
    MEASURE_HEADINGS,
    Table,
    format_markdown_table,
    format_measure,
    json_number,
    read_scores,
)
from nnunetv2_crossmatch.folders import atomic_write, write_json
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint
from nnunetv2_crossmatch.training.record import PACKAGES

CONVENTIONS = {"strict": "", LITERATURE: LITERATURE, UNMIRRORED: UNMIRRORED}
HEADS = {
    "strict": "strict convention",
    LITERATURE: "literature convention",
    UNMIRRORED: "strict convention, predicted without mirroring",
}
PUBLISHED_COLUMNS = ("method", "labeled", "Dice %", "Jaccard %", "95HD voxel", "ASD voxel")
HOW = (RECORD, "commands.sh", "splits.json", "splits_all_labeled.json", "runs.json", "step_times.json")


def foreground_means(scores_file: Path) -> dict[str, float]:
    """Means over cases of the mean over classes (one class: of that class), by measure; NaN where undefined."""
    summary = list(read_scores(scores_file)["summary"].values())[-1]
    return {measure: math.nan if one["mean"] is None else one["mean"] for measure, one in summary.items()}


def empty_predictions(scores_file: Path) -> int:
    """How often a class was not found at all although the reference has it."""
    return sum(counts["prediction"] for counts in read_scores(scores_file)["empty_masks"].values())


def over_seeds(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over runs, by measure; one run has no deviation."""
    spread = {
        name: statistics.stdev([one[name] for one in scores]) if len(scores) > 1 else math.nan for name in scores[0]
    }
    return {name: {"mean": statistics.mean([one[name] for one in scores]), "sd": spread[name]} for name in scores[0]}


def is_scored(protocol: Protocol, run: Run) -> bool:
    """Whether the run's predictions are scored in each way."""
    return (protocol.results(run) / UNMIRRORED / "scores.md").exists()


def collect(protocol: Protocol, runs: Sequence[Run]) -> dict[str, Any]:
    """Rows with their runs, each convention apart, in plain values."""
    rows: dict[str, Any] = {}
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group and is_scored(protocol, run)]
        if not members:
            continue
        scores = {
            name: [foreground_means(protocol.results(run) / folder / "scores.json") for run in members]
            for name, folder in CONVENTIONS.items()
        }
        rows[group] = {
            "title": members[0].title,
            "runs": [
                {**asdict(run), **facts(protocol, run), **{name: scores[name][i] for name in CONVENTIONS}}
                for i, run in enumerate(members)
            ],
            **{name: over_seeds(scores[name]) for name in CONVENTIONS},
        }
    return rows


def facts(protocol: Protocol, run: Run) -> dict[str, Any]:
    """What stands beside the scores of a run: seconds of its epochs, empty predictions, amounts each way."""
    logs = [load_checkpoint(protocol.fold(one) / "checkpoint_final.pth")["logging"] for one in trainings_of(run)]
    pairs = [
        pair for log in logs for pair in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    ]
    files = {name: protocol.results(run) / folder / "scores.json" for name, folder in CONVENTIONS.items()}
    return {
        "measured_seconds": sum(end - start for start, end in pairs),
        "empty_predictions": empty_predictions(files["strict"]),
        "amounts": {name: amounts(file) for name, file in files.items()},
    }


def amounts(scores_file: Path) -> dict[str, float]:
    """Predicted voxels per reference voxel of each class, over all cases; NaN for a class that no reference has."""
    voxels: dict[str, list[int]] = {}
    for case in read_scores(scores_file)["cases"].values():
        for name, one in case.items():
            counted = voxels.setdefault(name, [0, 0])
            counted[0] += one["prediction_voxels"]
            counted[1] += one["reference_voxels"]
    return {name: predicted / truth if truth else math.nan for name, (predicted, truth) in voxels.items()}


def keep_curves(protocol: Protocol, run: Run) -> None:
    """Copy the figures of a run's last training, and write the values behind them to ``curves.json``."""
    fold, target = protocol.fold(trainings_of(run)[-1]), protocol.results(run)
    log = load_checkpoint(fold / "checkpoint_final.pth")["logging"]
    write_json(target / "curves.json", {name: [jsonable(value) for value in values] for name, values in log.items()})
    for file in fold.glob("progress*.png"):
        shutil.copyfile(file, target / file.name)


def jsonable(value: Any) -> Any:
    """A logged value (number, array or list of numbers) as JSON knows it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [jsonable(one) for one in value] if isinstance(value, list | tuple) else json_number(value)


def table(rows: Mapping[str, Any], convention: str) -> Table:
    """One line per row: each seed's Dice, seeds, steps, amount of each class, mean and deviation of every measure."""
    measures = [name for name in MEASURE_HEADINGS if name in next(iter(rows.values()))[convention]]
    classes = list(next(iter(rows.values()))["runs"][0]["amounts"][convention])
    lines = []
    for row in rows.values():
        each = " ".join(format_measure(run[convention]["dice"], "dice") for run in row["runs"])
        found = [" / ".join(f"{run['amounts'][convention][name]:.2f}" for run in row["runs"]) for name in classes]
        numbers = [
            f"{format_measure(row[convention][m]['mean'], m)} ± {format_measure(row[convention][m]['sd'], m)}"
            for m in measures
        ]
        counts = len(row["runs"]), row["runs"][0]["steps"], sum(run["empty_predictions"] for run in row["runs"])
        lines.append((row["title"], each, *map(str, counts), *found, *numbers))
    amount = (f"amount of {name}" for name in classes)
    columns = (
        "row",
        "Dice per seed",
        "seeds",
        "steps",
        "empty",
        *amount,
        *(MEASURE_HEADINGS[name] for name in measures),
    )
    return Table(f"Means over cases, {HEADS[convention]}; mean ± SD over seeds", columns, tuple(lines), text_columns=2)


def published_table(request: Request) -> Table | None:
    """The paper's rows with as many labeled cases, and those with all of them; None for other data."""
    if request.dataset not in SOURCES:
        return None
    rows = published_rows(SOURCES[request.dataset].name)
    most = max(int(row.labeled) for row in rows)
    lines = tuple(
        (row.method, row.labeled, *row.measures) for row in rows if int(row.labeled) in (request.labeled, most)
    )
    return Table("Published (Zhao, Wang, Ding, JBHI 2024)", PUBLISHED_COLUMNS, lines, text_columns=1)


def environment(request: Request) -> dict[str, Any]:
    """Versions, device and processor of this machine, the code's commit, and the date."""
    on_gpu = request.device == "cuda"
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "cuda": torch.version.cuda if on_gpu else None,
        "processor": processor(),
        "threads": threads(request),
        "system": platform.platform(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def used_cases(protocol: Protocol) -> dict[str, Any]:
    """How many cases were labeled, unlabeled and scored, and the names listed for these roles that the data lack."""
    again = "call python -m benchmarks.protocol again in a new folder"
    form = {"cases": {...: {"role": str}}, "missing": [str]}
    record = read_json(protocol.conversion_record(), form, again)
    lists = read_json(protocol.splits_file(False), {...: [str]}, again)
    roles = ("labeled", "unlabeled", protocol.request.scored_on)
    unused = {name for role, names in lists.items() if role not in roles for name in names}
    return {
        **{role: sum(case["role"] == role for case in record["cases"].values()) for role in roles},
        "missing": [name for name in record["missing"] if name not in unused],
    }


def said_of(cases: Mapping[str, Any]) -> str:
    """The cases of :func:`used_cases` in a sentence."""
    counts = ", ".join(f"{count} {role}" for role, count in cases.items() if role != "missing")
    lacking = f"{len(cases['missing'])} ({', '.join(cases['missing'])})" if cases["missing"] else "none"
    return f"Cases: {counts}. Listed for them, but not in the data: {lacking}."


def page(
    request: Request,
    cases: Mapping[str, Any],
    rows: Mapping[str, Any],
    missing: Sequence[str],
    machine: Mapping[str, Any],
) -> str:
    """The content of ``results.md``."""
    head = f"# {request.name}, {request.labeled} labeled, scored on {request.scored_on}"
    published = published_table(request)
    tables = [*(table(rows, name) for name in CONVENTIONS if rows), *([published] if published else [])]
    caveats = [said_of(cases), *(published_caveats(request) if published else ())]
    lists = ["empty: masks of a class, over cases and seeds, that were predicted empty where the reference is not."]
    lists += ["amount: voxels predicted per voxel of the reference, over all cases, of each seed."]
    lists += [f"Not scored yet: {', '.join(missing)}."] if missing else []
    described = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    notes = "\n".join(f"- {line}" for line in [*lists, *caveats])
    return "\n\n".join([head, *map(format_markdown_table, tables), notes, "## Environment", described]) + "\n"


def published_caveats(request: Request) -> tuple[str, ...]:
    """What stands between these scores and the published ones."""
    cases = PUBLISHED_TEST_CASES[request.name]
    over = f"Scored on the list {request.scored_on}; the published rows are over {cases}."
    return over, PROTOCOL_CAVEATS[request.name], DISTANCE_CAVEAT, SINGLE_RUN_CAVEAT


def write_results(folder: Path) -> str:
    """Write ``results.md`` and ``results.json`` over all runs that are scored so far; returns the first one's text."""
    request = read_request(folder / RECORD)
    protocol, runs = Protocol(request, folder), read_runs(folder / "runs.json")
    rows, cases, machine = collect(protocol, runs), used_cases(protocol), environment(request)
    for run in runs:
        if is_scored(protocol, run):
            keep_curves(protocol, run)
    results = folder / "results"
    results.mkdir(exist_ok=True)
    for name in HOW:  # so that the folder can be handed on alone
        shutil.copyfile(folder / name, results / name)
    content = {"request": asdict(request), "cases": cases, "environment": machine, "rows": finite(rows)}
    write_json(results / "results.json", content)
    missing = [run.name for run in runs if not is_scored(protocol, run)]
    text = page(request, cases, rows, missing, machine)
    with atomic_write(results / "results.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def publish(folder: Path, target: Path) -> None:
    """Copy the numbers of the results to ``target``: compact, without figures, reports and paths of this machine."""
    results = folder / "results"
    names = ("results.json", "step_times.json", "splits.json")
    each = (f"*/{name}" for name in ("curves.json", "scores.json", f"{UNMIRRORED}/scores.json"))
    for file in (file for pattern in (*names, *each) for file in results.glob(pattern)):
        copy = target / file.relative_to(results)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(copy) as temporary:
            content = without_paths(read_json(file, object, "make the results again"))
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def without_paths(value: Any) -> Any:
    """Nested plain values, with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, metavar="OUT", help="folder of the protocol")
    print(write_results(parser.parse_args().folder.resolve()))


def finite(value: Any) -> Any:
    """Nested plain values with None for NaN."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return json_number(value) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
