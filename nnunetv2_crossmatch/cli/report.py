"""``nnUNetv2_crossmatch_report``: scores, pictures and training of a model in one HTML file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunetv2_crossmatch.cli.evaluate import (
    add_scoring_options,
    check_numeric_options,
    evaluation_options,
    requested_dataset_json,
)
from nnunetv2_crossmatch.errors import Problem, command, command_line, raise_if_any
from nnunetv2_crossmatch.report.build import ReportRequest, write_report

PROGRAM = "nnUNetv2_crossmatch_report"
DESCRIPTION = """One HTML file about a folder of predictions, to look at, to print and to send: mean scores with
intervals, all cases with the worst first, contours on five slices and the worst one, surfaces coloured by distance,
the paired comparison with other predictions, training curves and settings, and the published numbers for LA and ACDC.
The file needs no other file and no network. It shows slices of the images: share it as you may share those."""
EPILOG = """examples:
  nnUNetv2_crossmatch_report -r labelsTs -p crossmatch -i imagesTs -o report.html
  nnUNetv2_crossmatch_report -r labelsTs -p crossmatch --compare supervised -i imagesTs -m MODEL_FOLDER -o report.html

Scores are those of nnUNetv2_crossmatch_evaluate."""
HELP = {
    "-o": "the HTML file to write",
    "-i": "folder with the images; default: contours are drawn without them",
    "-m": "model folder (<trainer>__<plans>__<configuration>) whose training curves and settings are shown",
    "--pictures": "cases, from the worst on, that are drawn; default: %(default)s",
    "--surfaces": "cases, from the worst on, that are also drawn as surfaces; default: %(default)s",
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_scoring_options(result)
    result.add_argument("-o", type=Path, required=True, metavar="FILE", help=HELP["-o"])
    result.add_argument("-i", type=Path, metavar="IMAGES", help=HELP["-i"])
    result.add_argument("-m", type=Path, metavar="MODEL_FOLDER", help=HELP["-m"])
    result.add_argument("--pictures", type=int, default=20, metavar="N", help=HELP["--pictures"])
    result.add_argument("--surfaces", type=int, default=3, metavar="N", help=HELP["--surfaces"])
    return result


def check_picture_counts(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` for negative numbers of pictures."""
    counts = {"--pictures": arguments.pictures, "--surfaces": arguments.surfaces}
    negative = [f"{flag} {count}" for flag, count in counts.items() if count < 0]
    raise_if_any([Problem("impossible number of pictures", "", given, "give 0 or more") for given in negative])


@command
def main() -> None:
    """Score, draw, write."""
    arguments = parser().parse_args()
    check_numeric_options(arguments)
    check_picture_counts(arguments)
    request = ReportRequest(
        reference=arguments.r,
        predictions=arguments.p,
        options=evaluation_options(arguments),
        other=arguments.compare,
        images=arguments.i,
        model=arguments.m,
        dataset_json=requested_dataset_json(arguments),
        pictures=arguments.pictures,
        surfaces=arguments.surfaces,
        command=command_line(PROGRAM, *sys.argv[1:]),
    )
    write_report(request, arguments.o)
    print(f"written: {arguments.o} ({arguments.o.stat().st_size / 1e6:.1f} MB)")
