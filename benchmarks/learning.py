"""Comparison of methods and supervised training on generated volumes, over several seeds, with equal steps.

    python benchmarks/learning.py --seeds 0 1 2 --settings "" warmup0 --folder learning --json docs/results/phantom.json
    python benchmarks/learning.py --seeds 0 1 --methods SASSNet CAML --folder learning --json FILE

For every seed, supervised training and each of the methods, with each of the settings (tokens of the trainer's name),
use the same 3 labeled and 12 unlabeled generated volumes; 12 test volumes are scored. The volumes differ from those of
the demo, whose difficulty was tuned on its test volumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from nnunetv2_crossmatch.demo import run as demo
from nnunetv2_crossmatch.demo.stages import Stages
from nnunetv2_crossmatch.methods.crossmatch import CrossMatchSettings
from nnunetv2_crossmatch.methods.names import settings_from_name

DEMO_SIZE = replace(demo.FULL_SIZE, labeled=3, test=12, shape=(48, 48, 16), epochs=24, iterations=25)
DATA_SEED = 1


def make_trainer_names(size: demo.DemoSize, seed: int, methods: list[str], tokens: list[str]) -> dict[str, str]:
    """Name to trainer: supervised training (same seed), and every method with each of the token lists."""
    run = CrossMatchSettings(epochs=size.epochs, iterations=size.iterations, validation_iterations=2, seed=seed)
    length = run.trainer_name.removeprefix(CrossMatchSettings.trainer)
    changed = {
        f"{method} {t}".strip(): f"nnUNetTrainer{method}{length}_{t}".rstrip("_") for method in methods for t in tokens
    }
    return {"supervised": replace(run, unsupervised=0.0).trainer_name, **changed}


def format_row(name: str, dices: list[float]) -> str:
    spread = statistics.stdev(dices) if len(dices) > 1 else float("nan")
    each = " ".join(f"{dice:.4f}" for dice in dices)
    return f"{name:30} {statistics.mean(dices):8.4f} {spread:8.4f}   {each}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=[""], help="token lists, e.g. warmup0 tau0p95_eta0p1")
    parser.add_argument("--methods", nargs="+", default=["CrossMatch"], metavar="METHOD", help="default: CrossMatch")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for data, models and logs")
    parser.add_argument("--json", type=Path, help="write the scores there")
    parser.add_argument("--quick", action="store_true", help="smoke run of two steps on tiny volumes: means nothing")
    args = parser.parse_args()
    size = demo.QUICK_SIZE if args.quick else DEMO_SIZE
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = {seed: make_trainer_names(size, seed, args.methods, args.settings) for seed in args.seeds}
    for trainer in runs[args.seeds[0]].values():
        settings_from_name(trainer)
    stages = Stages(
        5 + 3 * sum(map(len, runs.values())),
        args.folder.resolve(),
        demo.make_environment(args.folder.resolve(), device),
    )
    demo.prepare_dataset(stages, size, DATA_SEED)
    results: dict[str, dict[int, dict]] = {}
    for seed, trainers in runs.items():
        for name, trainer in trainers.items():
            demo.train_and_score(stages, f"{name} {seed}", trainer, size.epochs, device)
            scores = demo.read_scores(stages.folder, f"{name} {seed}")
            mean = next(iter(scores["summary"].values()))
            results.setdefault(name, {})[seed] = {
                "trainer": trainer,
                **{key: mean[key]["mean"] for key in demo.COLUMNS},
            }
            if args.json:
                args.json.write_text(json.dumps({"cases": size.test, "runs": results}, indent=2))
    print(f"\n{'mean Dice over ' + str(size.test) + ' cases':30} {'mean':>8} {'SD':>8}   per seed")
    print("\n".join(format_row(name, [run["dice"] for run in by_seed.values()]) for name, by_seed in results.items()))


if __name__ == "__main__":
    main()
