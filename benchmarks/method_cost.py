"""Cost of a training step of every method, in supervised steps: time, floating-point operations, memory.

    python benchmarks/method_cost.py -d 502 -c 2d [-p nnUNetPlans] [--methods UAMT CPS] [--steps 7] [--json FILE]

Real trainers on a preprocessed data set with unlabeled cases. Each method has a process of its own, in which its steps
and nnU-Net's own take turns; time is the median over such pairs. Operations are what PyTorch counts (convolutions
and products of matrices). Memory is weights, of the method's networks too, and what two steps add to them: on a CPU to
the resident set (Linux), on a GPU to CUDA's allocator. Drawing batches is not timed, optimizers are. On a CPU set
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=60000000000, or page faults of large tensors double the time.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from new_process import growth_of_memory, run_for_memory, run_in_new_process
from prepared_trainer import begin, prepared_trainer
from step import measure_seconds
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_crossmatch.methods.names import METHODS

SUPERVISED = "nnUNetTrainerCrossMatch_2epochs_iters500_valiters1_seed0_unsup0"
BEGUN = {"BCP": "_pretrain0", "FilterMatch": "_labeledonly0"}
"""Tokens of methods that begin with labeled images alone."""
BATCHES, WARM_UP = 2, 2


class Request(NamedTuple):
    """What the trainers train on, and how many steps of each are timed."""

    dataset: str
    configuration: str
    plans: str
    device: str
    steps: int


def trainer_name(method: str) -> str:
    """The method with its own settings, learning from unlabeled images from the first step on."""
    return f"nnUNetTrainer{method}_2epochs_iters500_valiters1_seed0_warmup0{BEGUN.get(method, '')}"


class Trained:
    """A trainer that has started, and a few batches that its steps use in turn."""

    def __init__(self, request: Request, name: str) -> None:
        device = torch.device(request.device)
        with redirect_stdout(io.StringIO()):
            self.trainer = prepared_trainer(name, request.dataset, request.configuration, device, request.plans)
            begin(self.trainer)
        self.batches = itertools.cycle([next(self.trainer.dataloader_train) for _ in range(BATCHES)])
        self.trainer.stop_loaders()

    def step(self) -> None:
        """One training step."""
        self.trainer.train_step(next(self.batches))

    def weights(self) -> int:
        """Bytes of the network and of what else the method keeps."""
        kept = [*self.trainer.network.state_dict().values(), *self.trainer.method.state_dict().values()]
        return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))


def memory_of(request: Request, name: str) -> int:
    """Weights and what two steps add to them, in bytes; in a new process."""
    trained = Trained(request, name)
    return trained.weights() + growth_of_memory(trained.step, trained.trainer.device, 2)


def speed_of(request: Request, name: str) -> dict[str, float]:
    """Time and operations of a step, also in supervised steps; in a new process."""
    pair = [Trained(request, name), Trained(request, SUPERVISED)]
    for trained in pair * WARM_UP:
        trained.step()
    device = pair[0].trainer.device
    rounds = [[measure_seconds(trained.step, device) for trained in pair] for _ in range(request.steps)]
    own, base = (operations_of(trained) for trained in pair)
    ratios = [ours / supervised for ours, supervised in rounds]
    return {
        "ms": 1000 * statistics.median(ours for ours, _ in rounds),
        "supervised_ms": 1000 * statistics.median(supervised for _, supervised in rounds),
        "time_ratio": statistics.median(ratios),
        "time_ratio_min": min(ratios),
        "time_ratio_max": max(ratios),
        "gflop": own / 1e9,
        "flop_ratio": own / base,
    }


class OneModule:
    """In place of the counter's own tracker of modules, which calls without gradient inside those with it confuse."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def operations_of(trained: Trained) -> int:
    """Floating-point operations of one step."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = OneModule()
    with counter:
        trained.step()
    return counter.get_total_flops()


def measured(request: Request, method: str, base: int) -> dict[str, float]:
    """All numbers of a method; ``base`` is the memory of the supervised step."""
    name = trainer_name(method)
    memory = run_for_memory(memory_of, request, name)
    mib = {"peak_mib": memory / 2**20, "memory_ratio": memory / base}
    return run_in_new_process(speed_of, request, name) | mib


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = [method.__name__ for method in METHODS]
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("-d", dest="dataset", required=True, help="data set, planned and preprocessed")
    result.add_argument("-c", dest="configuration", default="3d_fullres", help="default: %(default)s")
    result.add_argument("-p", dest="plans", default="nnUNetPlans", help="default: %(default)s")
    result.add_argument("--methods", nargs="+", choices=names, default=names, metavar="METHOD", help="default: all")
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    result.add_argument("--steps", type=int, default=7, help="timed steps of each (default: %(default)s)")
    result.add_argument("--json", type=Path, help="write the numbers there, after each method")
    return result


def main() -> None:
    given = parser().parse_args()
    request = Request(given.dataset, given.configuration, given.plans, given.device, given.steps)
    os.environ["nnUNet_n_proc_DA"] = "0"  # no loading beside the timed steps
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        base = run_for_memory(memory_of, request, SUPERVISED)
        print(f"{'in supervised steps':20}{'time':>7}{'FLOP':>7}{'memory':>8}{'ms':>9}{'MiB':>8}", flush=True)
        for method in given.methods:
            row = rows[method] = measured(request, method, base)
            ratios = f"{row['time_ratio']:7.2f}{row['flop_ratio']:7.2f}{row['memory_ratio']:8.2f}"
            print(f"{method:20}{ratios}{row['ms']:9.1f}{row['peak_mib']:8.0f}", flush=True)
            if given.json:
                facts = {"configuration": given.configuration, "device": given.device, "supervised_mib": base / 2**20}
                given.json.write_text(json.dumps({**facts, "methods": rows}, indent=1))


if __name__ == "__main__":
    main()
