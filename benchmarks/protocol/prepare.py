"""Steps of a protocol that no console command does: plans for several data sets, and labels of unlabeled cases.

    python -m benchmarks.protocol.prepare plans --planned nnUNetPlans -c 2d --targets Dataset502_ACDC Dataset552_ACDC
    python -m benchmarks.protocol.prepare labels --labeled Dataset552_ACDC --unlabeled Dataset502_ACDC

Limit: data sets in nnU-Net's folders that the protocol made.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_plans_file
from nnunetv2_crossmatch.data.raw_cases import group_by_case
from nnunetv2_crossmatch.errors import command
from nnunetv2_crossmatch.folders import (
    atomic_folder,
    preprocessed_folder,
    raw_folder,
    unlabeled_images_folder,
    write_json,
)
from nnunetv2_crossmatch.prediction.pseudo_labeled import join
from nnunetv2_crossmatch.prediction.second_training import FOLDS, give_plans, half_labeled, read_fingerprint

PLANS = "nnUNetProtocolPlans"
SMALL_STAGES = 4
SMALL_BATCH = {2: 4, 3: 2}
"""By the number of axes."""


def protocol_plans(plans: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """``plans`` for ``dataset`` under the protocol's name, with preprocessed folders of their own."""
    changed: dict[str, Any] = json.loads(json.dumps({**plans, "plans_name": PLANS, "dataset_name": dataset}))
    for name, configuration in changed["configurations"].items():
        if "data_identifier" in configuration:
            configuration["data_identifier"] = f"{PLANS}_{name}"
    return changed


def shrink(configuration: dict[str, Any], patch: Sequence[int], features: int, spacing_mm: float | None = None) -> None:
    """Make a configuration one for CPUs: a small patch and few features, given for the first stage; coarser voxels."""
    axes, size = len(patch), configuration["median_image_size_in_voxels"]
    spacing = [spacing_mm] * axes if spacing_mm else configuration["spacing"]
    strides = list(halvings(patch))
    stages = len(strides)
    configuration.update(
        spacing=spacing,
        median_image_size_in_voxels=[
            n * a / b for n, a, b in zip(size, configuration["spacing"], spacing, strict=True)
        ],
        patch_size=list(patch),
        batch_size=SMALL_BATCH[axes],
    )
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=[features * 2**stage for stage in range(stages)],
        kernel_sizes=[[3] * axes] * stages,
        strides=strides,
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )


def halvings(patch: Sequence[int]) -> Iterator[list[int]]:
    """Strides of each stage, at most :data:`SMALL_STAGES`: an axis is halved while it is even and at least 8 long."""
    sizes = list(patch)
    yield [1] * len(sizes)
    for _ in range(SMALL_STAGES - 1):
        strides = [2 if size % 2 == 0 and size >= 8 else 1 for size in sizes]
        if max(strides) == 1:
            return
        yield strides
        sizes = [size // stride for size, stride in zip(sizes, strides, strict=True)]


def write_plans(arguments: argparse.Namespace) -> None:
    """Give every target the plans made for the first one, and what preprocessing and training look for beside them."""
    source = preprocessed_folder() / arguments.targets[0]
    plans = check_plans_file(source / f"{arguments.planned}.json")
    fingerprint = read_fingerprint(source)
    for target in arguments.targets:
        changed = protocol_plans(plans, target)
        if arguments.small_patch:
            small = arguments.small_patch, arguments.small_features, arguments.small_mm
            shrink(changed["configurations"][arguments.configuration], *small)
        give_plans(preprocessed_folder() / target, changed, PLANS, fingerprint)


def copy_labels(arguments: argparse.Namespace) -> None:
    """Copy the labels of the unlabeled cases from the data set that has them to ``labelsUn``."""
    images = unlabeled_images_folder(arguments.unlabeled)
    source = raw_folder() / arguments.labeled
    ending = check_dataset_file(source / "dataset.json")["file_ending"]
    with atomic_folder(images.with_name("labelsUn")) as folder:
        for case in group_by_case(images, ending)[0]:
            shutil.copyfile(source / "labelsTr" / f"{case}{ending}", folder / f"{case}{ending}")


def learn_from_predictions(arguments: argparse.Namespace) -> None:
    """Make the data set of self-training: labels of the labeled cases, predictions of the unlabeled ones.

    Its folds are 0, every case once, and 1, the labeled cases half of the time; both are validated on the labeled
    cases. The file of the folds is written last.
    """
    labeled, predicted = _join_labels(raw_folder() / arguments.labeled, arguments.target, arguments.predictions)
    source = preprocessed_folder() / arguments.labeled
    plans = check_plans_file(source / f"{PLANS}.json")
    fingerprint = read_fingerprint(source)
    folder = preprocessed_folder() / arguments.target
    give_plans(folder, {**plans, "dataset_name": arguments.target}, PLANS, fingerprint)
    lists = sorted([*labeled, *predicted]), half_labeled(labeled, predicted)
    folds = [{"train": train, "val": labeled} for train in lists]
    write_json(folder / FOLDS, folds)


def _join_labels(source: Path, name: str, predictions: Path) -> tuple[list[str], list[str]]:
    """Write the raw data set ``name``; returns the labeled and the predicted cases."""
    target, ending = raw_folder() / name, check_dataset_file(source / "dataset.json")["file_ending"]
    unlabeled = group_by_case(source / "imagesUn", ending)[0]
    shutil.rmtree(target, ignore_errors=True)  # of a call that was stopped
    with atomic_folder(target) as folder:
        labeled = join(folder, source, unlabeled, predictions)
    return labeled, list(unlabeled)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    plans = commands.add_parser("plans", help=f"write {PLANS}.json for all targets, from the first one's plans")
    plans.add_argument("--planned", required=True, help="plans identifier of the host's planner")
    plans.add_argument("-c", dest="configuration", required=True)
    plans.add_argument("--targets", nargs="+", required=True)
    plans.add_argument("--small-patch", type=int, nargs="+", help="shrink the configuration to this patch")
    plans.add_argument("--small-mm", type=float, help="and to voxels of this size")
    plans.add_argument("--small-features", type=int, default=16, help="of its first stage (default: %(default)s)")
    plans.set_defaults(do=write_plans)
    labels = commands.add_parser("labels", help="write labelsUn, which diagnose1 compares pseudo-labels with")
    labels.add_argument("--labeled", required=True, help="data set with all training cases labeled")
    labels.add_argument("--unlabeled", required=True, help="data set that gets labelsUn")
    labels.set_defaults(do=copy_labels)
    predicted = commands.add_parser("predicted", help="make the data set of labeled cases and predicted unlabeled ones")
    predicted.add_argument("--labeled", required=True, help="data set with labeled and unlabeled cases")
    predicted.add_argument("--target", required=True, help="data set that is made")
    predicted.add_argument("--predictions", type=Path, required=True, help="predictions of the unlabeled cases")
    predicted.set_defaults(do=learn_from_predictions)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
