"""Data of the stages c and d: copied if they are preprocessed, else converted, planned and preprocessed; or generated.

What each data set is comes into prepare.json as soon as it is ready.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_stages.page import write_json
from benchmarks.gpu_stages.sheet import Sheet, stage_arguments

PLANS = "nnUNetPlans"
FULL_SHAPE, DRY_SHAPE = (160, 160, 88), (32, 32, 16)  # of generated volumes, x, y, z
DRY_PATCH, DRY_FEATURES = {"2d": (32, 32), "3d_fullres": (16, 16, 16)}, 4
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed")


def run(*command: str) -> None:
    print(*command, flush=True)
    subprocess.run(command, check=True)


def processes() -> str:
    """Half of the cores: the stage a runs beside this."""
    return str(max(1, min(8, (os.cpu_count() or 1) // 2)))


def copied(data: Path, work: Path) -> Iterator[dict[str, Any]]:
    """Data sets that are preprocessed, labeled and unlabeled cases."""
    for name in FOLDERS:
        shutil.copytree(data / name, work / name, dirs_exist_ok=True)
    for plans in sorted((work / FOLDERS[1]).glob(f"*/{PLANS}.json")):
        configurations = json.loads(plans.read_text())["configurations"]
        for name, one in configurations.items():
            if (plans.parent / f"{one.get('data_identifier')}_unlabeled").is_dir():
                yield {"name": plans.parent.name, "configuration": name}


def lists_of(folder: Path, file: Path) -> Path:
    """Split lists of however many LA cases there are: a fifth to score, of the others half labeled, at most 8."""
    cases = sorted(found.parent.name for found in folder.glob("*/mri_norm2.h5"))
    scored = max(1, len(cases) // 5)
    train, labeled = cases[:-scored], max(1, min(8, (len(cases) - scored) // 2))
    write_json(file, {"train": train, "val": cases[-scored:], "labeled": {str(labeled): train[:labeled]}})
    return file


def generated(work: Path, shape: tuple[int, int, int], cases: int) -> Path:
    from nnunetv2_crossmatch.demo.phantom import write_dataset

    folder = work / "generated"
    write_dataset(folder, cases, 0, 0, shape=shape)
    return folder


def converted_la(folder: Path, work: Path) -> dict[str, Any]:
    lists = lists_of(folder, work / "la.json")
    (labeled,) = json.loads(lists.read_text())["labeled"]
    chosen = ("--labeled", labeled, "--splits", str(lists), "-np", processes())
    run("nnUNetv2_crossmatch_convert_LA", "-i", str(folder), "-d", "501", *chosen)
    return {"name": "Dataset501_LA", "configuration": "3d_fullres"}


def converted_acdc(folder: Path) -> dict[str, Any]:
    chosen = ("--labeled", "3", "--allow-missing", "-np", processes())
    run("nnUNetv2_crossmatch_convert_ACDC", "-i", str(folder), "-d", "502", *chosen)
    return {"name": "Dataset502_ACDC", "configuration": "2d"}


def planned(dataset: dict[str, Any], work: Path, dry: bool) -> dict[str, Any]:
    """Plan and preprocess; ``dry`` makes patch and network tiny."""
    number, configuration = dataset["name"][7:10], dataset["configuration"]
    chosen = ("-d", number, "-c", configuration)
    run("nnUNetv2_plan_and_preprocess", *chosen, "-npfp", processes(), "-np", processes())
    if dry:
        shrink_plans(work / FOLDERS[1] / dataset["name"] / f"{PLANS}.json", configuration)
    run("nnUNetv2_crossmatch_preprocess", *chosen, "-np", processes())
    return dataset


def shrink_plans(file: Path, configuration: str) -> None:
    from benchmarks.protocol.prepare import shrink

    plans = json.loads(file.read_text())
    shrink(plans["configurations"][configuration], DRY_PATCH[configuration], DRY_FEATURES)
    write_json(file, plans)


def data_sets(data: Path | None, work: Path, dry: bool) -> Iterator[dict[str, Any]]:
    """Every data set that ``data`` holds, ready to train."""
    if data and all((data / name).is_dir() for name in FOLDERS):
        yield from copied(data, work)
        return
    found = False
    if data and (data / "acdc_h5").is_dir():
        found = True
        yield planned(converted_acdc(data / "acdc_h5"), work, dry)
    if data and (data / "la_h5").is_dir():
        found = True
        yield planned(converted_la(data / "la_h5", work), work, dry)
    if not found:
        yield planned(converted_la(generated(work, DRY_SHAPE if dry else FULL_SHAPE, 5), work), work, dry)


def main() -> None:
    arguments = stage_arguments()
    for name in (*FOLDERS, "nnUNet_results"):
        (arguments.work / name).mkdir(exist_ok=True)
    sheet = Sheet(arguments.result, arguments.seconds)
    ready: list[dict[str, Any]] = []
    sheet.add("data", ready)
    for dataset in data_sets(arguments.data, arguments.work, arguments.dry):
        ready.append({"generated": (arguments.work / "generated").is_dir(), **dataset})
        sheet.add("data", ready)


if __name__ == "__main__":
    main()
