"""Preprocessing and verification of many unlabeled cases: time, throughput, and peak memory of the parent process.

Limit: tiny generated cases, in a planned data set that may be spoiled: its unlabeled images are replaced.
Example: ``python benchmarks/unlabeled.py --dataset Dataset998_Tiny --cases 200 2000``; one process per number of cases.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.unlabeled import prepared_cases, preprocess_unlabeled


def generate(folder: Path, number: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number):
        image = sitk.GetImageFromArray(random.normal(size=(8, 16, 16)).astype(np.float32))
        sitk.WriteImage(image, str(folder / f"case{index:06d}_0000.nii.gz"))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(dataset: str, number: int, processes: int) -> None:
    generate(folders.images_unlabeled(dataset), number)
    start = time.perf_counter()
    preprocess_unlabeled(dataset, "nnUNetPlans", ["2d"], processes)
    preprocessed = time.perf_counter()
    plans = PlansManager(str(folders.preprocessed_folder() / dataset / "nnUNetPlans.json"))
    ready = prepared_cases(plans, "2d")
    end = time.perf_counter()
    seconds = f"preprocess {preprocessed - start:.1f} s, verify {end - preprocessed:.2f} s"
    print(f"{len(ready)} cases: {seconds}, peak of the parent {peak_mib():.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="planned data set; its imagesUn is replaced")
    parser.add_argument("--cases", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    for number in arguments.cases:
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=measure, args=(arguments.dataset, number, arguments.processes))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
