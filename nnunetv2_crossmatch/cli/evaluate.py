"""``nnUNetv2_crossmatch_evaluate``: score a folder of predictions, print the scores and write them to files."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2.configuration import default_num_processes

from nnunetv2_crossmatch.cli.output import print_result
from nnunetv2_crossmatch.errors import Problem, command, raise_if_any
from nnunetv2_crossmatch.evaluation.evaluate import EvaluationOptions, evaluate_folders
from nnunetv2_crossmatch.evaluation.score_files import format_for_terminal, write_scores
from nnunetv2_crossmatch.folders import dataset_name, raw_folder

DESCRIPTION = """Dice, Jaccard, 95 % Hausdorff distance (95HD) and average surface distance (ASD) of predictions,
per case and class, with mean, standard deviation and a 95 % bootstrap interval.
Writes scores.csv, scores.json and scores.md."""
EPILOG = """examples:
  nnUNetv2_crossmatch_evaluate -r $nnUNet_raw/Dataset501_LA/labelsTs -p predictions
  nnUNetv2_crossmatch_evaluate -r labelsTs -p crossmatch --compare supervised -d 501

Files are matched by name; dataset.json gives file ending, classes, regions and ignore label. Overlaps run from 0 to 1.
A class that is empty in prediction or reference has no distance: it is counted as undefined and enters no mean."""
HELP = {
    "-r": "folder with the reference segmentations",
    "-p": "folder with the predicted segmentations",
    "-d": "data set (id or name) whose dataset.json describes the labels",
    "-djfile": "dataset.json; default: the one in PREDICTIONS, else the one beside REFERENCE",
    "-o": "folder for scores.csv, scores.json, scores.md; default: PREDICTIONS",
    "-np": "cases in work at once; default: %(default)s",
    "--compare": "second folder of predictions: adds the paired difference with its interval and the p-value of "
    "Wilcoxon's signed-rank test",
    "--spacing": "voxel size in mm of all cases instead of the files' own; needed for mm where that is nominal",
    "--allow-missing": "score what is there and list the references without a prediction, which are an error otherwise",
    "--suffix": "ending that is removed from file names to get the name of the case, in both folders (case_seg.nii.gz: "
    "--suffix=_seg); can be repeated",
    "--literature": "count an empty prediction as 0 in every measure, distances included, as the published LA and ACDC "
    "tables do",
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_scoring_options(result)
    result.add_argument("-o", type=Path, metavar="OUT", help=HELP["-o"])
    return result


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for input and scoring, which ``nnUNetv2_crossmatch_report`` shares."""
    parser.add_argument("-r", type=Path, required=True, metavar="REFERENCE", help=HELP["-r"])
    parser.add_argument("-p", type=Path, required=True, metavar="PREDICTIONS", help=HELP["-p"])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-d", metavar="ID", help=HELP["-d"])
    source.add_argument("-djfile", type=Path, metavar="FILE", help=HELP["-djfile"])
    parser.add_argument("-np", type=int, default=default_num_processes, metavar="N", help=HELP["-np"])
    parser.add_argument("--compare", type=Path, metavar="OTHER", help=HELP["--compare"])
    parser.add_argument("--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help=HELP["--spacing"])
    parser.add_argument("--allow-missing", action="store_true", help=HELP["--allow-missing"])
    parser.add_argument("--suffix", action="append", default=[], metavar="SUFFIX", help=HELP["--suffix"])
    parser.add_argument("--literature", action="store_true", help=HELP["--literature"])


def requested_dataset_json(arguments: argparse.Namespace) -> Path | None:
    """The ``dataset.json`` given with -d or -djfile; None if neither is given."""
    if arguments.d is None:
        return arguments.djfile
    return raw_folder() / dataset_name(arguments.d) / "dataset.json"


def check_numeric_options(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` for values of -np and --spacing outside of their range."""
    problems = []
    if arguments.np < 1:
        problems.append(Problem("impossible number of cases at once", "", f"-np {arguments.np}", "give 1 or more"))
    if arguments.spacing and not all(0 < size < float("inf") for size in arguments.spacing):
        detail = f"--spacing {' '.join(map(str, arguments.spacing))}"
        problems.append(Problem("impossible voxel size", "", detail, "give three lengths in mm above 0"))
    raise_if_any(problems)


def evaluation_options(arguments: argparse.Namespace) -> EvaluationOptions:
    """Options of the evaluation, shared with the report."""
    return EvaluationOptions(
        spacing_mm=arguments.spacing,
        literature=arguments.literature,
        allow_missing=arguments.allow_missing,
        suffixes=tuple(arguments.suffix),
        processes=arguments.np,
    )


@command
def main() -> None:
    """Evaluate, write, print."""
    arguments = parser().parse_args()
    check_numeric_options(arguments)
    folders = [arguments.p] if arguments.compare is None else [arguments.p, arguments.compare]
    dataset_json = requested_dataset_json(arguments)
    scores, *others = evaluate_folders(arguments.r, folders, dataset_json, evaluation_options(arguments))
    other = (others[0], arguments.compare) if others else (None, None)
    origin = {"reference": str(arguments.r), "predictions": str(arguments.p)}
    written = write_scores(scores, arguments.o or arguments.p, origin, *other)
    text = f"{format_for_terminal(scores, *other)}\n\nwritten: {', '.join(map(str, written))}"
    print_result(text, f"the scores are in {written[-1]}")
