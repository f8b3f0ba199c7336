"""Many unlabeled cases: time and peak memory of preprocessing, of the start of a training, and of 20 steps.

    python benchmarks/many_cases.py --dataset 998 --cases 200 2000
    python benchmarks/many_cases.py --dataset 998 --cases 100000 --copied

``--copied`` preprocesses one case and copies its files for all others, for numbers of cases that would take hours to
preprocess; only start and steps are measured. Every measurement runs in a new process. Limit: tiny generated cases, in
a planned data set without unlabeled images.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from new_process import run_in_new_process
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from prepared_trainer import begin, prepared_trainer

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.manifest import CaseRecord, read_manifest, write_manifest
from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled
from nnunetv2_crossmatch.data.unlabeled_folder import unlabeled_folder_of
from nnunetv2_crossmatch.errors import InputError, Problem, command

STEPS = 20
NAME = f"nnUNetTrainerCrossMatch_1epochs_iters{STEPS}_valiters1_seed0"
PLANS, CONFIGURATION = "nnUNetPlans", "2d"


GENERATED_IMAGE = re.compile(r"case\d{6}_0000\.nii\.gz")


def case_name(index: int) -> str:
    return f"case{index:06d}"


def check_for_foreign_images(folder: Path) -> None:
    """Raise :class:`InputError` if ``folder``, which will be replaced, contains images not generated here."""
    foreign = sorted(file for file in folder.glob("*") if not GENERATED_IMAGE.fullmatch(file.name))
    if foreign:
        fix = "give a planned data set without imagesUn"
        raise InputError(Problem("unlabeled images would be lost", folder, f"{foreign[0].name} and others", fix))


def write_images(folder: Path, number: int) -> None:
    """Replace the images in ``folder`` by ``number`` volumes of noise."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number):
        image = sitk.GetImageFromArray(random.normal(size=(8, 16, 16)).astype(np.float32))
        sitk.WriteImage(image, str(folder / f"{case_name(index)}_0000.nii.gz"))


def copy_first_case(dataset: str, number: int) -> None:
    """Copy the raw and preprocessed files of the first case until there are ``number`` cases."""
    manager = PlansManager(str(folders.preprocessed_folder() / dataset / f"{PLANS}.json"))
    unlabeled = unlabeled_folder_of(manager, CONFIGURATION, PLANS)
    manifest = read_manifest(unlabeled.manifest_file, unlabeled.command)
    (image,) = folders.unlabeled_images_folder(dataset).iterdir()
    record, first = manifest.cases[case_name(0)], case_name(0)
    for index in range(1, number):
        name = case_name(index)
        shutil.copy2(image, image.with_name(image.name.replace(first, name)))
        for ending in record.files:
            shutil.copy2(unlabeled.folder / (first + ending), unlabeled.folder / (name + ending))
        sources = {file.replace(first, name): known for file, known in record.sources.items()}
        manifest.cases[name] = CaseRecord(record.files, sources)
    write_manifest(unlabeled.manifest_file, manifest)


def print_measurement(number: int, what: str, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = f"{1000 * seconds / number:7.2f} ms a case"
    print(f"{number:7d} cases  {what:24} {seconds:8.1f} s  {each}  peak of this process {peak:6.0f} MiB", flush=True)


def measure_preprocessing(dataset: str, number: int, processes: int) -> None:
    start = time.perf_counter()
    preprocess_unlabeled(dataset, PLANS, [CONFIGURATION], processes)
    print_measurement(number, "preprocess", time.perf_counter() - start)


def measure_training(dataset: str, number: int, verify: int) -> None:
    name = NAME if verify else f"{NAME}_verify0"
    trainer = prepared_trainer(name, dataset, CONFIGURATION, torch.device("cpu"), PLANS)
    start = time.perf_counter()
    begin(trainer)
    print_measurement(number, f"start, verify{verify}", time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(STEPS):
        trainer.train_step(next(trainer.dataloader_train))
    print_measurement(number, f"{STEPS} steps", time.perf_counter() - start)
    trainer.stop_loaders()


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="planned data set without unlabeled images; it gets some")
    parser.add_argument("--cases", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--processes", type=int, default=2, help="of the preprocessing")
    parser.add_argument("--copied", action="store_true", help="copies of one case instead of preprocessing each")
    arguments = parser.parse_args()
    dataset = folders.dataset_name(arguments.dataset)
    check_for_foreign_images(folders.unlabeled_images_folder(dataset))
    for number in arguments.cases:
        write_images(folders.unlabeled_images_folder(dataset), 1 if arguments.copied else number)
        run_in_new_process(measure_preprocessing, dataset, 1 if arguments.copied else number, arguments.processes)
        if arguments.copied:
            copy_first_case(dataset, number)
        for verify in (1, 0):
            run_in_new_process(measure_training, dataset, number, verify)


if __name__ == "__main__":
    main()
