"""``nnUNetv2_crossmatch_check``: check installation, settings and a data set, and print how to fix each fault."""

from __future__ import annotations

import argparse
import sys

from nnunetv2_crossmatch.cli.environment_checks import NOTE, WRONG, check_all
from nnunetv2_crossmatch.errors import command


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_check",
        description="Check versions, GPU, compiler, nnU-Net's variables, disk, shared memory and, with -d, a data set. "
        "Every fault comes with the line that mends it. Exit code 0 if training would start, else 2.",
        epilog="Example: nnUNetv2_crossmatch_check -d 501 -c 3d_fullres -tr nnUNetTrainerCrossMatch",
    )
    add = result.add_argument
    add("-d", metavar="ID", help="data set (id or name) whose plans and unlabeled cases are checked too")
    add("-c", nargs="+", default=[], metavar="CONFIG", help="configurations (default: all that are preprocessed)")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    add("-tr", metavar="TRAINER", help="trainer whose name, settings and, with -d, run are checked too")
    return result


@command
def main() -> None:
    """Print all results, then whether training would start."""
    arguments = parser().parse_args()
    found = check_all(arguments.d, arguments.c, arguments.p, arguments.tr)
    results = dict.fromkeys(found)  # one cause can show in two checks
    for result in results:
        print(result)
    wrong, notes = (sum(result.state == state for result in results) for state in (WRONG, NOTE))
    verdict = f"{wrong} wrong: training would not start" if wrong else "training would start"
    print(f"\n{verdict}" + (f" ({notes} to note)" if notes else ""))
    sys.exit(2 if wrong else 0)
