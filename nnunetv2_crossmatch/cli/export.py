"""``nnUNetv2_crossmatch_export``: export a model for prediction with unmodified nnU-Net."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_crossmatch.cli.model_export import export_model, files_missing_for_zip_export
from nnunetv2_crossmatch.errors import command


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
    return result


@command
def main() -> None:
    """Export a model and print the command that predicts with it."""
    arguments = parser().parse_args()
    exported = export_model(arguments.m, arguments.o)
    print(f"Exported to {exported}\nPredict anywhere: nnUNetv2_predict_from_modelfolder -m {exported} -i IMAGES -o OUT")
    missing = files_missing_for_zip_export(exported)
    if missing:
        print(f"nnUNetv2_export_model_to_zip will ask for {', '.join(missing)}: finish the training's validation first")
