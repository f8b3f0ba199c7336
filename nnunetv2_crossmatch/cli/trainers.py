"""``nnUNetv2_crossmatch_trainers``: print the folder that ``nnUNet_extTrainer`` must name."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_crossmatch.errors import command


@command
def main() -> None:
    """Print only the folder that contains the trainers, so that a shell can capture it."""
    argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_trainers",
        description="Print the folder in which nnU-Net finds the CrossMatch trainers.",
        epilog='Example: export nnUNet_extTrainer="$(nnUNetv2_crossmatch_trainers)"',
    ).parse_args()
    print(Path(__file__).resolve().parent.parent / "ext_trainers")
