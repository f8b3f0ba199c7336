"""``nnUNetv2_crossmatch_preprocess``: preprocess the unlabeled images of a data set."""

from __future__ import annotations

import argparse

from nnunetv2.configuration import default_num_processes

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled
from nnunetv2_crossmatch.errors import command


def parser() -> argparse.ArgumentParser:
    """The command's options, named as nnU-Net's."""
    result = argparse.ArgumentParser(
        prog="nnUNetv2_crossmatch_preprocess",
        description="Preprocess $nnUNet_raw/<data set>/imagesUn with the plans of the labeled cases. Finished "
        "cases are kept, changed and damaged ones are redone, removed ones are dropped.",
        epilog="Example: nnUNetv2_crossmatch_preprocess -d 501 -c 3d_fullres",
    )
    result.add_argument("-d", required=True, metavar="ID", help="id or name of the data set")
    result.add_argument("-c", nargs="+", default=[], metavar="CONFIG", help="configurations (default: all but cascade)")
    result.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    result.add_argument("-np", type=int, default=default_num_processes, metavar="N", help="processes (%(default)s)")
    return result


@command
def main() -> None:
    """Preprocess the unlabeled images."""
    arguments = parser().parse_args()
    preprocess_unlabeled(folders.dataset_name(arguments.d), arguments.p, arguments.c, arguments.np)
