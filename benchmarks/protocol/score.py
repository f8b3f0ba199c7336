"""The predictions of a run scored each way: strict, by the literature's convention, and those without mirroring.

    python -m benchmarks.protocol.score -r labelsVal -p MIRRORED UNMIRRORED -o OUT

As three calls of nnUNetv2_crossmatch_evaluate would, in one. Limit: scores only; tables over runs are in ``results``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_crossmatch.errors import command
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folder
from nnunetv2_crossmatch.evaluation.score_files import format_for_terminal, write_scores

LITERATURE, UNMIRRORED = "literature", "unmirrored"
"""Folders below OUT; the last one is written last."""


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", type=Path, required=True, help="reference labels")
    parser.add_argument("-p", type=Path, nargs=2, required=True, help="predictions with and without mirroring")
    parser.add_argument("-o", type=Path, required=True, help="folder for the scores")
    given = parser.parse_args()
    mirrored, unmirrored = given.p
    for folder, predictions in (("", mirrored), (LITERATURE, mirrored), (UNMIRRORED, unmirrored)):
        scores = evaluate_folder(given.r, predictions, literature=folder == LITERATURE)
        print(format_for_terminal(scores))
        write_scores(scores, given.o / folder, {"reference": str(given.r), "predictions": str(predictions)})


if __name__ == "__main__":
    main()
