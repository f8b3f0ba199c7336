"""Data loading: CPU time per sample of labeled and unlabeled batches, and samples per second by number of workers.

    python benchmarks/loader.py -d 502 -c 2d [-p nnUNetPlans] [--batches 20] [--workers 0 1 2]

An unlabeled sample is a crop with its three views. CPU times are medians of interleaved batches in this process with a
single thread; samples per second count both kinds of a joint batch. Limit: a planned and preprocessed data set on a
local disk, whose files are cached; cold and network disks are not measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from prepared_trainer import prepared_trainer

from nnunetv2_crossmatch.data.loader import DrainingAugmenter, make_augmenter
from nnunetv2_crossmatch.methods.crossmatch import CrossMatchSettings


def make_joint_loader(arguments: argparse.Namespace) -> Any:
    """The joint loader of a training, without worker processes."""
    os.environ["nnUNet_n_proc_DA"] = "0"
    name = CrossMatchSettings(seed=0, verify=0, views=arguments.views, batch=arguments.batch).trainer_name
    of = arguments.dataset, arguments.configuration
    trainer = prepared_trainer(name, *of, torch.device("cpu"), arguments.plans)
    trainer.initialize()
    trainer.unlabeled_cases = trainer._ready_unlabeled_cases()
    return trainer.get_dataloaders()[0].data_loader


def measure_cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def samples_per_second(batches: Any, samples: int, workers: int, count: int) -> float:
    """Samples per second with ``workers`` processes, without their start."""
    loader = make_augmenter(batches.labeled, batches.unlabeled, (0, 0, 0), 0, workers, False)
    for _ in range(2 + 2 * workers):  # workers start, and fill their queues
        next(loader)
    start = time.perf_counter()
    for _ in range(count):
        next(loader)
    seconds = time.perf_counter() - start
    if isinstance(loader, DrainingAugmenter):
        loader._finish()
    return samples * count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", dest="dataset", required=True, help="data set, planned and preprocessed")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="default: %(default)s")
    parser.add_argument("--views", choices=("host", "authors"), default="host", help="default: %(default)s")
    parser.add_argument("--batch", type=int, help="samples of each kind (default: the plans')")
    parser.add_argument("--batches", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batches = make_joint_loader(arguments)
    kinds = {"labeled": batches.labeled, "unlabeled": batches.unlabeled}
    sizes = {name: len(next(loader)["data"]) for name, loader in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.batches):
        for name, loader in kinds.items():
            times[name].append(1000 * measure_cpu_seconds(lambda loader=loader: next(loader)) / sizes[name])
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{arguments.configuration}, patch {tuple(batches.labeled.final_patch_size)}, batch {sizes}")
    for name, values in times.items():
        print(f"{name:10} {medians[name]:8.1f} ms of CPU a sample  (min {min(values):.1f}, max {max(values):.1f})")
    print(f"an unlabeled sample costs {medians['unlabeled'] / medians['labeled']:.2f} labeled ones")
    for workers in arguments.workers:
        speed = samples_per_second(batches, sum(sizes.values()), workers, arguments.batches)
        print(f"{workers} workers: {speed:8.1f} samples/s, joint batches", flush=True)


if __name__ == "__main__":
    main()
