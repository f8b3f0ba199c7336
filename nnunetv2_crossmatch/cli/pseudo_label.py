"""``nnUNetv2_crossmatch_pseudo_label``: a data set with predicted labels of the unlabeled images, for self-training."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.errors import command, command_line
from nnunetv2_crossmatch.prediction.predictor import CasePredictor
from nnunetv2_crossmatch.prediction.pseudo_labeled import LIST, make_pseudo_labeled


def parser() -> argparse.ArgumentParser:
    """The command's options, named as nnU-Net's."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_pseudo_label",
        description="Predict imagesUn of a data set with a trained model, and make a new raw data set of the labeled "
        "cases and the predicted ones, for a second training: the simple alternative to a semi-supervised trainer.",
        epilog="Example: nnUNetv2_crossmatch_pseudo_label -d 501 -o 511 -m $nnUNet_results/Dataset501_LA/"
        "nnUNetTrainer__nnUNetPlans__3d_fullres",
    )
    add = result.add_argument
    add("-m", required=True, type=Path, metavar="MODEL", help="model folder, the one that holds fold_*")
    add("-d", required=True, metavar="ID", help="id or name of the data set with imagesUn")
    add("-o", required=True, type=dataset_id, metavar="NEW_ID", help="id of the new data set")
    add("--name", metavar="NAME", help="its name (default: that of the old one, then Pseudo)")
    add("--keep", type=share, default=1.0, metavar="SHARE", help="use only this share of the cases, the surest ones")
    only = "text file with the cases to take, a name per line, as the page of a review gives it (default: all)"
    add("--only", type=Path, metavar="FILE", help=only)
    add("-f", nargs="+", metavar="FOLD", help="folds whose mean predicts (default: all that are there)")
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (default: %(default)s)")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is one, else cpu")
    trust = "own class that the plans may name, as a.b.Class"
    add("--trust", action="append", default=[], metavar="NAME", help=trust)
    return result


def dataset_id(text: str) -> int:
    """1 to 999."""
    if not 0 < (number := int(text)) < 1000:
        raise argparse.ArgumentTypeError(f"{number} is not from 1 to 999")
    return number


def share(text: str) -> float:
    """More than 0, at most 1."""
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


@command
def main() -> None:
    """Make the data set and print what comes next."""
    arguments = parser().parse_args()
    dataset = folders.dataset_name(arguments.d)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = CasePredictor(arguments.m.resolve(), arguments.f, arguments.chk, device, arguments.trust)
    name = arguments.name or re.sub(r"Dataset\d+_?", "", dataset, count=1) + "Pseudo"
    written = make_pseudo_labeled(model, dataset, arguments.o, name, arguments.keep, arguments.only)
    print(f"{written.name} written to {written}; {LIST} there lists the predicted labels.")
    print(f"Next: {command_line('nnUNetv2_plan_and_preprocess', '-d', arguments.o)}")
    print(f"then: {command_line('nnUNetv2_train', arguments.o, 'CONFIGURATION', 'all')}")
