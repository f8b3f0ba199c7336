"""Split files that ask whether labeling the cases of a review pays: they, as many at random, or outliers in volume.

    nnUNetv2_crossmatch_review -m MODEL -d ID -o review.html --next 6
    python -m benchmarks.label_next review.json --splits splits.json --labeled 4 -o FOLDER

FOLDER gets a split file per choice, for ``python -m benchmarks.protocol DATASET --splits FILE --labeled N``: the chosen
cases are labeled, too, the other lists stay. Limit: writes lists; what they are worth is in the scores of the protocol.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol.folder_data import read_lists
from nnunetv2_crossmatch.errors import InputError, Problem, command
from nnunetv2_crossmatch.folders import write_json
from nnunetv2_crossmatch.json_files import read_json

DRAWS = 3
REVIEW = {"label_next": [{"case": str, ...: object}], "cases": {...: {"classes": dict, ...: object}}, ...: object}


def volume_outliers(cases: Mapping[str, Mapping[str, Any]], count: int) -> list[str]:
    """Cases with the largest robust z of a class's volume, either way; undefined ones last."""

    def deviation(case: str) -> float:
        return max((abs(one["volume_z"] or 0.0) for one in cases[case]["classes"].values()), default=0.0)

    return sorted(cases, key=lambda case: (-deviation(case), case))[:count]


def choices(review: Mapping[str, Any], seed: int = 0) -> dict[str, list[str]]:
    """Name to cases: those of the review, :data:`DRAWS` draws of as many, and the outliers in volume."""
    listed, cases = [one["case"] for one in review["label_next"]], sorted(review["cases"])
    rng = np.random.default_rng(seed)
    drawn = {f"random{n}": sorted(map(str, rng.choice(cases, len(listed), replace=False))) for n in range(DRAWS)}
    return {"review": listed, **drawn, "volume": volume_outliers(review["cases"], len(listed))}


def with_labels(roles: Mapping[str, Sequence[str]], chosen: Sequence[str]) -> dict[str, list[str]]:
    """The roles with ``chosen`` moved from the unlabeled cases to the labeled ones."""
    rest = [case for case in roles["unlabeled"] if case not in chosen]
    return {
        **{role: list(cases) for role, cases in roles.items()},
        "labeled": [*roles["labeled"], *chosen],
        "unlabeled": rest,
    }


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    result = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    result.add_argument("review", type=Path, help="JSON file of a review of the unlabeled cases, with --next")
    result.add_argument("--splits", type=Path, required=True, help="split file of the data set")
    result.add_argument("--labeled", type=int, required=True, help="how many were labeled for the reviewed model")
    result.add_argument("-o", type=Path, required=True, help="folder of the split files")
    return result


@command
def main() -> None:
    """Write a split file per choice and print how each continues."""
    arguments = parser().parse_args()
    review = read_json(arguments.review, REVIEW, "name the .json file beside the page of a review")
    roles = read_lists(arguments.splits, arguments.labeled)
    if unknown := set(review["cases"]) - set(roles["unlabeled"]):
        fix = "name the split file and the number of the reviewed model"
        raise InputError(Problem("reviewed case is not unlabeled", arguments.splits, min(unknown), fix))
    arguments.o.mkdir(parents=True, exist_ok=True)
    for name, chosen in choices(review).items():
        file = arguments.o / f"{name}.json"
        write_json(file, with_labels(roles, chosen))
        print(f"{file}: --labeled {arguments.labeled + len(chosen)}, new {', '.join(chosen)}")


if __name__ == "__main__":
    main()
