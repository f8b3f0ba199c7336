"""``nnUNetv2_crossmatch_export``: export a model for prediction with unmodified nnU-Net."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nnunetv2_crossmatch.cli.model_export import (
    MEAN,
    export_model,
    files_missing_for_zip_export,
    predict_command,
)
from nnunetv2_crossmatch.errors import command, command_line
from nnunetv2_crossmatch.training.checkpoints import WEIGHTS


def parser() -> argparse.ArgumentParser:
    """The command's options, named as nnU-Net's."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_export",
        description="Copy a trained model so that nnU-Net predicts with it where this package is not installed.",
        epilog="Example: nnUNetv2_crossmatch_export -m $nnUNet_results/Dataset501_LA/"
        "nnUNetTrainerCrossMatch__nnUNetPlans__3d_fullres -o shared_models",
    )
    result.add_argument("-m", required=True, type=Path, metavar="MODEL", help="model folder, the one that holds fold_*")
    result.add_argument("-o", required=True, type=Path, metavar="FOLDER", help="new folder, laid out as nnUNet_results")
    result.add_argument("--unfinished", action="store_true", help="also export folds without checkpoint_final.pth")
    explanation = (
        "the network's, those of its moving average (teacher), of the second network (peer), or of both networks as "
        "two folds, whose mean nnU-Net predicts (mean)"
    )
    result.add_argument("--weights", choices=[*WEIGHTS, MEAN], default="network", help=explanation)
    result.add_argument(
        "--trust", action="append", default=[], metavar="NAME", help="own class that the plans may name, as a.b.Class"
    )
    return result


@command
def main() -> None:
    """Export a model and print the command that predicts with it."""
    arguments = parser().parse_args()
    exported = export_model(arguments.m, arguments.o, arguments.unfinished, arguments.trust, arguments.weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"Exported to {exported}\nPredict anywhere: {command_line(*predict_command(exported, device))}")
    missing = files_missing_for_zip_export(exported)
    if missing:
        print(f"nnUNetv2_export_model_to_zip will ask for {', '.join(missing)}: finish the training's validation first")
