"""``nnUNetv2_crossmatch_trainers``: print the folder that ``nnUNet_extTrainer`` must name, or the list of trainers."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_crossmatch.errors import command


@command
def main() -> None:
    """Print only the folder that contains the trainers, so that a shell can capture it; with --list the trainers."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_trainers",
        description="Print the folder in which nnU-Net finds the CrossMatch trainers, or what these are.",
        epilog='Example: export nnUNet_extTrainer="$(nnUNetv2_crossmatch_trainers)"',
    )
    explanation = (
        "print a line per trainer instead: cost of a step in supervised ones, what it learns, presets, own tokens"
    )
    parser.add_argument("--list", action="store_true", help=explanation)
    if parser.parse_args().list:
        from nnunetv2_crossmatch.methods.names import list_methods  # torch takes seconds, and the folder needs none

        print("\n".join(list_methods()))
        return
    print(Path(__file__).resolve().parent.parent / "ext_trainers")
