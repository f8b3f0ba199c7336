"""Does what a review measures rank cases by their true Dice? Spearman correlations over its held-out cases.

    nnUNetv2_crossmatch_review -m MODEL -d ID -o review.html --held-out IMAGES LABELS
    python benchmarks/review_ranking.py review_cases

Positive: more of the measure, less Dice. Intervals: bootstrap over cases. Limit: as many cases as were held out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap, spearmanr


def measures_of(case: dict[str, Any]) -> dict[str, float]:
    """Numbers of a case by name; ``small`` is the volume, smallest first."""
    kinds = {f"disagreement, {kind}": float(np.mean(values)) for kind, values in case["disagreement"].items()}
    mean = {"disagreement": float(np.mean(list(kinds.values())))} if kinds else {}
    volume = sum(one["voxels"] for one in case["classes"].values())
    return {**mean, **kinds, "unsure surface": case["unsure"], "entropy": case["entropy"], "small volume": -volume}


def correlation(values: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation with its 95 % interval."""

    def rank(x: np.ndarray, y: np.ndarray) -> float:
        return float(spearmanr(x, y).statistic)

    options: dict[str, Any] = {"paired": True, "vectorized": False, "method": "percentile", "rng": 0}
    bounds = bootstrap((values, error), rank, n_resamples=2000, **options).confidence_interval
    return rank(values, error), float(bounds.low), float(bounds.high)


def main(folder: Path) -> None:
    cases = [json.loads(file.read_text()) for file in sorted(folder.glob("held_out/measures/*.json"))]
    cases = [case for case in cases if case["dice"] is not None]
    if len(cases) < 3:
        sys.exit(f"error: too few held-out cases in {folder}: {len(cases)}. Fix: review with --held-out")
    error = np.array([1 - case["dice"] for case in cases])
    print(f"{len(cases)} cases, mean Dice {1 - error.mean():.3f}")
    for name in measures_of(cases[0]):
        found = correlation(np.array([measures_of(case)[name] for case in cases]), error)
        print("{:30} {:.2f} ({:.2f} to {:.2f})".format(name, *found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
