"""Preprocessing of unlabeled cases compared with nnU-Net's of labeled cases: seconds per case and peak memory.

    python benchmarks/preprocess.py [--cases 8 16 32] [--shape 96 160 160] [-np 2]

Generates a data set in a temporary folder with equal numbers of labeled and unlabeled volumes, plans it, and
preprocesses both kinds one after the other with the same number of processes. The slope from the smallest to the
largest number of cases excludes the start of the workers. Limit: volumes of noise, which compress worse than images.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from new_process import run_in_new_process

NAME, PLANS, CONFIGURATION = "Dataset999_Preprocessing", "nnUNetPlans", "3d_fullres"


def write_case(folder: Path, kind: str, index: int, shape: Sequence[int]) -> None:
    """Write a bright ellipsoid in noise; with a label only for ``Tr``."""
    random = np.random.default_rng((index, kind == "Un"))
    grid = np.moveaxis(np.indices(shape), 0, -1)
    inside = (((grid - np.array(shape) / 2) / (np.array(shape) / 4)) ** 2).sum(-1) <= 1
    image = random.normal(size=shape).astype(np.float32) + 3 * inside
    sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / f"images{kind}" / f"{kind}{index:04d}_0000.nii.gz"))
    if kind == "Tr":
        label = sitk.GetImageFromArray(inside.astype(np.uint8))
        sitk.WriteImage(label, str(folder / "labelsTr" / f"{kind}{index:04d}.nii.gz"))


def write_dataset(root: Path, cases: int, shape: Sequence[int]) -> None:
    folder = root / "raw" / NAME
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("imagesTr", "labelsTr", "imagesUn"):
        (folder / name).mkdir(parents=True)
    for index in range(cases):
        for kind in ("Tr", "Un"):
            write_case(folder, kind, index, shape)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "blob": 1}}
    description |= {"numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def plan_dataset(processes: int) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([999], num_processes=processes)
    plan_experiments([999])


def preprocess_labeled(processes: int) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    preprocess_dataset(999, PLANS, (CONFIGURATION,), (processes,))


def preprocess_unlabeled_cases(processes: int) -> None:
    from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled

    preprocess_unlabeled(NAME, PLANS, [CONFIGURATION], processes)


def measure_preprocessing(way: str, processes: int) -> tuple[float, float, float]:
    """Seconds, and peak resident memory in MiB of this process and of the largest of its workers."""
    work = {"host": preprocess_labeled, "ours": preprocess_unlabeled_cases}[way]
    import nnunetv2_crossmatch.data.preprocessing  # noqa: F401  common imports are not timed

    start = time.perf_counter()
    work(processes)
    seconds = time.perf_counter() - start
    own, workers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return seconds, own, workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[8, 16, 32], help="labeled, and as many unlabeled")
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 160, 160], metavar=("Z", "Y", "X"))
    parser.add_argument("-np", dest="processes", type=int, default=2)
    arguments = parser.parse_args()
    seconds: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{kind}"] = str(Path(folder) / kind)
            (Path(folder) / kind).mkdir()
        for cases in arguments.cases:
            write_dataset(Path(folder), cases, arguments.shape)
            shutil.rmtree(Path(folder) / "preprocessed" / NAME, ignore_errors=True)
            run_in_new_process(plan_dataset, arguments.processes)
            for way in ("host", "ours"):
                seconds[way, cases], own, workers = run_in_new_process(measure_preprocessing, way, arguments.processes)
                line = (
                    f"{cases:5d} cases  {way}  {seconds[way, cases]:7.1f} s  {cases / seconds[way, cases]:6.2f} cases/s"
                )
                print(f"{line}  peak {own:.0f} MiB, largest worker {workers:.0f} MiB", flush=True)
    few, many = min(arguments.cases), max(arguments.cases)
    if few < many:
        slope = {way: (seconds[way, many] - seconds[way, few]) / (many - few) for way in ("host", "ours")}
        print(
            f"per case: host {slope['host']:.3f} s, ours {slope['ours']:.3f} s, {slope['ours'] / slope['host']:.2f} x"
        )


if __name__ == "__main__":
    main()
