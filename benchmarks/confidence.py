"""Confidence and precision of a model for each class: effect of the confidence threshold tau on its labels.

    nnUNetv2_predict -i imagesVal -o predictions -d 502 -c 2d -f all -tr nnUNetTrainerCrossMatch --save_probabilities
    python benchmarks/confidence.py -r labelsVal -p predictions [--tau 0 0.85 0.95] [--json out.json]

``kept``: share of the voxels predicted as a class that pass the threshold. ``right``: share of these with the class in
the reference. ``size``: number of these voxels divided by the number of voxels above the threshold with the class in
the reference; below 1 the class is underestimated. All voxels of all cases together. Limit: softmax classes only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunetv2_crossmatch.errors import InputError, Problem, command, raise_if_any
from nnunetv2_crossmatch.evaluation.evaluate import pair_files
from nnunetv2_crossmatch.evaluation.label_schemes import read_label_schemes
from nnunetv2_crossmatch.evaluation.segmentations import (
    LabelScheme,
    checked_labels,
    find_reader,
    read_prediction_and_reference,
)

COLUMNS = ("tau", "class", "kept", "right", "size")


def read_probabilities(prediction: Path, scheme: LabelScheme) -> NDArray[np.float32]:
    """Probabilities (background and classes, z, y, x) that nnU-Net saved next to ``prediction``.

    Raises:
        InputError: the file is missing, or its channels are regions.
    """
    file = prediction.with_name(prediction.name.removesuffix(scheme.file_ending) + ".npz")
    if not file.is_file():
        raise InputError(Problem("no probabilities", file, "no such file", "predict with --save_probabilities"))
    probabilities = np.load(file)["probabilities"]
    if list(scheme.classes.values()) == [(channel,) for channel in range(1, len(probabilities))]:
        return probabilities
    regions = any(len(values) > 1 for values in scheme.classes.values())
    kind = "its channels are regions" if regions else f"{len(probabilities)} channels, {len(scheme.classes)} classes"
    raise InputError(
        Problem("not background and classes", file, kind, "predict with a model of this data set's classes")
    )


def count_voxels(probabilities: NDArray[np.float32], reference: NDArray, taus: list[float]) -> NDArray[np.int64]:
    """Voxel counts of each class: predicted, kept, kept and correct, kept with the class in the reference.

    Args:
        probabilities: (classes, N).
        reference: labels (N), all of them classes.

    Returns:
        (taus, 4, classes).
    """
    confidence, given = probabilities.max(0), probabilities.argmax(0)
    kept = [confidence >= tau for tau in taus]
    chosen = [(given, given[k], given[k & (given == reference)], reference[k]) for k in kept]
    return np.array([[np.bincount(part, minlength=len(probabilities)) for part in parts] for parts in chosen])


def make_rows(totals: NDArray[np.int64], taus: list[float], names: list[str]) -> list[dict]:
    """One row for each threshold and class, with the shares of :data:`COLUMNS`; NaN for a division by zero."""
    given, kept, right, true = np.moveaxis(totals, 1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {"kept": kept / given, "right": right / kept, "size": kept / true}
    return [
        {"tau": tau, "class": name, **{column: float(share[t, c]) for column, share in shares.items()}}
        for t, tau in enumerate(taus)
        for c, name in enumerate(names)
    ]


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", type=Path, required=True, dest="reference", help="folder with the references")
    parser.add_argument("-p", type=Path, required=True, dest="predictions", help="folder with the predictions")
    parser.add_argument("--tau", type=float, nargs="+", default=[0, 0.85, 0.95], help="default: 0 0.85 0.95")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    labels = read_label_schemes(args.reference, [args.predictions])[0]
    scheme = labels.scheme
    if labels.mapping:
        raise InputError(Problem("other label numbers", args.predictions, labels.notes[0], "predict with these labels"))
    files = pair_files(args.reference, args.predictions, scheme.file_ending).pairs
    reader = find_reader(scheme, next(iter(files.values()))[1])
    total, problems = 0, []
    for prediction, reference in files.values():
        _, truth = read_prediction_and_reference(prediction, reference, reader)
        known = checked_labels(truth.voxels, reference, scheme.values(with_ignore=True), problems)
        raise_if_any(problems)
        counted = known != (-1 if scheme.ignore is None else scheme.ignore)
        total = total + count_voxels(read_probabilities(prediction, scheme)[:, counted], known[counted], args.tau)
    table = make_rows(total, args.tau, ["background", *scheme.classes])
    print(f"{len(files)} cases\n" + "".join(f"{column:>12}" for column in COLUMNS))
    for row in table:
        print(f"{row['tau']:12.2f}{row['class']:>12}" + "".join(f"{row[column]:12.3f}" for column in COLUMNS[2:]))
    if args.json:
        args.json.write_text(json.dumps({"cases": len(files), "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
