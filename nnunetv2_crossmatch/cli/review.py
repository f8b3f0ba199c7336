"""``nnUNetv2_crossmatch_review``: unlabeled cases predicted and judged without a reference, and which to label next."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

import torch

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.errors import Problem, command, command_line, raise_if_any
from nnunetv2_crossmatch.prediction.predictor import CasePredictor
from nnunetv2_crossmatch.review.build import ReviewRequest, write_review

PROGRAM = "nnUNetv2_crossmatch_review"
DESCRIPTION = """Is a model any good on cases without a reference, and which of them should be labeled next? Predicts
the unlabeled cases, measures how far perturbed decodings and other networks disagree, how unsure surfaces are and how
unusual volumes, guesses the Dice from held-out labeled cases, and writes one HTML page, with CSV and JSON beside it. A
stopped run goes on where it was. The page shows slices of the images: share it as you may share those."""
EPILOG = """example:
  nnUNetv2_crossmatch_review -m $nnUNet_results/Dataset501_LA/nnUNetTrainerCrossMatch__nnUNetPlans__3d_fullres -d 501 -o
    review.html"""


def parser() -> argparse.ArgumentParser:
    """The command's options, named as nnU-Net's."""
    result = argparse.ArgumentParser(
        prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("-m", required=True, type=Path, metavar="MODEL", help="model folder, the one that holds fold_*")
    add("-d", required=True, metavar="ID", help="id or name of the data set")
    add("-o", required=True, type=Path, metavar="FILE", help="the page; FILE_cases beside it keeps the predictions")
    add("-i", type=Path, metavar="IMAGES", help="folder of the unlabeled images (default: imagesUn of the data set)")
    add("-f", nargs="+", metavar="FOLD", help="folds whose mean predicts (default: all that are there)")
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (default: %(default)s)")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is one, else cpu")
    add("--disable_tta", action="store_true", help="predict without mirroring: faster, a little worse")
    label_next = "cases to label next; where measured, no better than random ones, see docs (default: %(default)s)"
    add("--next", type=int, default=10, metavar="N", help=label_next)
    held_out = "labeled cases that the model did not learn from (default: the validation cases of its folds)"
    add("--held-out", nargs=2, type=Path, metavar=("IMAGES", "LABELS"), help=held_out)
    add("--draws", type=int, default=3, metavar="N", help="draws of each perturbation (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the first draw (default: %(default)s)")
    add("--pictures", type=int, default=20, metavar="N", help="worst cases that are drawn (default: %(default)s)")
    add("--open", action="store_true", help="open the page in the browser")
    trust = "own class that the plans may name, as a.b.Class"
    add("--trust", action="append", default=[], metavar="NAME", help=trust)
    return result


def check_counts(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` for numbers that are none of things."""
    least = {"next": 0, "draws": 1, "seed": 0, "pictures": 0}
    wrong = {name: low for name, low in least.items() if getattr(arguments, name) < low}
    raise_if_any(
        [
            Problem("impossible number", "", f"--{name} {getattr(arguments, name)}", f"give {low} or more")
            for name, low in wrong.items()
        ]
    )


@command
def main() -> None:
    """Review, print what was found; exit code 1 if a case could not be used."""
    arguments = parser().parse_args()
    check_counts(arguments)
    dataset = folders.dataset_name(arguments.d)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = CasePredictor(
        arguments.m.resolve(), arguments.f, arguments.chk, device, arguments.trust, not arguments.disable_tta
    )
    request = ReviewRequest(
        dataset,
        arguments.o.absolute(),
        arguments.i,
        tuple(arguments.held_out) if arguments.held_out else None,
        arguments.next,
        arguments.draws,
        arguments.seed,
        arguments.pictures,
        command_line(PROGRAM, *sys.argv[1:]),
    )
    found = write_review(model, request)
    for line in (*found.left_out, *found.failed):
        print(line, file=sys.stderr)
    if found.chosen:
        print(f"label next: {', '.join(one.result.case for one in found.chosen)}")
    print(f"written: {arguments.o} ({arguments.o.stat().st_size / 1e6:.1f} MB), and .csv and .json beside it")
    if arguments.open:
        webbrowser.open(request.output.resolve().as_uri())
    if found.failed:
        sys.exit(1)
