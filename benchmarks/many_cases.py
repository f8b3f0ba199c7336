"""Start and 20 training steps with many unlabeled cases: time and peak memory of the trainer's process.

Limit: tiny generated cases, in a planned data set that may be spoiled: its unlabeled images are replaced.
Example: ``python benchmarks/many_cases.py --dataset 998 --cases 200 2000``; one process per number of cases.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time

import torch
from unlabeled import generate, peak_mib

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.trainer import trainer_class
from nnunetv2_crossmatch.unlabeled import preprocess_unlabeled

NAME = "nnUNetTrainerCrossMatch_1epochs_iters20_valiters1_seed0"


def measure(dataset: str, number: int) -> None:
    preprocessed = folders.preprocessed_folder() / dataset
    plans = {**json.loads((preprocessed / "nnUNetPlans.json").read_text()), "continue_training": False}
    description = json.loads((preprocessed / "dataset.json").read_text())
    trainer = trainer_class(NAME)(plans, "2d", "all", description, torch.device("cpu"))
    start = time.perf_counter()
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    begun = time.perf_counter()
    for _ in range(20):
        trainer.train_step(next(trainer.dataloader_train))
    end = time.perf_counter()
    trainer._stop_loaders()
    times = f"start {begun - start:.1f} s, 20 steps {end - begun:.1f} s"
    print(f"{number} unlabeled cases: {times}, peak of the trainer {peak_mib():.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="planned data set; its imagesUn is replaced")
    parser.add_argument("--cases", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    dataset = folders.dataset_name(arguments.dataset)
    for number in arguments.cases:
        generate(folders.images_unlabeled(dataset), number)
        preprocess_unlabeled(dataset, "nnUNetPlans", ["2d"], arguments.processes)
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=measure, args=(dataset, number))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
