"""Checks whether training would start: versions, device, environment variables, folders, disk space, and a data set.

Limit: changes nothing, starts nothing, reads a few labeled cases, and not the unlabeled ones (the trainer does).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch import ext_trainers, folders
from nnunetv2_crossmatch.cli.label_like_channels import label_like_channels
from nnunetv2_crossmatch.data.loader import bytes_of_batch, shared_memory_needed
from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_dataset_name, check_plans_file
from nnunetv2_crossmatch.data.preprocessing import is_preprocessed, raw_case_names, trainable_cases
from nnunetv2_crossmatch.data.unlabeled_folder import unlabeled_folder_of
from nnunetv2_crossmatch.errors import InputError, Problem, command_line, run_all
from nnunetv2_crossmatch.methods.names import METHODS, method_of, settings_from_name
from nnunetv2_crossmatch.training.named import check_found, trainer_class
from nnunetv2_crossmatch.training.requirements import (
    EXCLUDED_TORCH,
    c_compiler,
    check_cases,
    check_labels,
    check_requirements,
    check_splits,
    check_writable,
    folds_problem,
    missing_for_compiler,
    preprocess_command,
    run_folder,
)
from nnunetv2_crossmatch.training.supervised import HOST_NAME
from nnunetv2_crossmatch.training.trainer import check_network, check_settings, task_of
from nnunetv2_crossmatch.training.trainer import nnUNetTrainerSemiSupervised as Trainer

OK, NOTE, WRONG = "ok", "note", "wrong"
GIB = 1024**3
DISK_NEEDED, DISK_RECOMMENDED = 1 * GIB, 20 * GIB
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_NEEDED = GIB // 8  # for any data set; containers often have 64 MiB, with which workers end in a bus error
REPORTED_PACKAGES = (
    "nnunetv2_crossmatch", "nnunetv2", "torch", "batchgenerators", "batchgeneratorsv2", "acvl-utils", "numpy",
)  # fmt: skip
FOLDER_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
EXPORT_COMMAND = 'export nnUNet_extTrainer="$(nnUNetv2_crossmatch_trainers)"'


@dataclass(frozen=True)
class CheckResult:
    """Result of one check: ``state`` is ok, note (training starts nevertheless) or wrong; ``fix`` is the remedy."""

    state: str
    what: str
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        remedy = f"\n{'':9}fix: {self.fix}" if self.fix else ""
        return f"{self.state:>5}    {self.what}: {self.detail}{remedy}"


def check_all(
    dataset: str | None, configurations: Sequence[str], plans: str, trainer: str | None = None
) -> Iterator[CheckResult]:
    """Run all checks, in the order in which faults should be fixed; ``dataset`` is an id, a name, or None.

    ``trainer`` is the name of a trainer, whose settings are checked, too, and its run of ``dataset``.
    """
    yield from check_versions()
    yield from check_device()
    yield from check_data_folders()
    yield check_trainers_folder()
    yield from check_workers()
    if trainer is not None:
        yield check_trainer_name(trainer)
    if dataset is not None:
        yield from check_dataset(dataset, configurations, plans, trainer)


def check_versions() -> Iterator[CheckResult]:
    """Installed versions; versions that nnU-Net or this package exclude are wrong."""
    found = {name: _installed_version(name) for name in REPORTED_PACKAGES}
    listed = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    yield CheckResult(OK, "installed", f"Python {platform.python_version()}, {listed}")
    if not (found["nnunetv2"] or "").startswith("2.8"):
        detail = f"version {found['nnunetv2']}, needed is 2.8"
        yield CheckResult(WRONG, "nnU-Net", detail, 'pip install "nnunetv2>=2.8,<2.9"')
    if torch.__version__.startswith(EXCLUDED_TORCH):
        detail = f"version {torch.__version__}: nnU-Net excludes 2.9"
        yield CheckResult(WRONG, "torch", detail, 'pip install "torch!=2.9.*"')


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_device() -> Iterator[CheckResult]:
    """GPU and, if nnU-Net would compile the network, what the compiler needs."""
    if not torch.cuda.is_available():
        yield CheckResult(NOTE, "CUDA", "no GPU that torch can use: training is slow", "nnUNetv2_train ... -device cpu")
        return
    yield CheckResult(OK, "CUDA", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    if os.environ.get("nnUNet_compile", "t").lower() not in ("true", "1", "t"):
        yield CheckResult(OK, "torch.compile", "switched off by nnUNet_compile")
        return
    if missing := missing_for_compiler():
        fix = "install it, or export nnUNet_compile=f"
        yield CheckResult(WRONG, "torch.compile", f"not found: {', '.join(missing)}", fix)
    else:
        yield CheckResult(OK, "torch.compile", str(c_compiler()))


def check_data_folders() -> Iterator[CheckResult]:
    """nnU-Net's three folders: variable set, folder exists, is writable, and has free disk space."""
    for name in FOLDER_VARIABLES:
        try:
            root = folders.root_folder(name)
        except InputError as error:
            yield from map(_result_of_problem, error.problems)
            continue
        yield _check_writable(name, root)
        yield _check_disk_space(name, root)


def _check_writable(name: str, root: Path) -> CheckResult:
    try:
        check_writable(root)
        return CheckResult(OK, name, str(root))
    except InputError as error:
        (problem,) = error.problems
        state = NOTE if name == "nnUNet_raw" else WRONG  # training only reads the raw images
        return CheckResult(state, name, f"{root} is not writable ({problem.detail})", problem.fix)


def _check_disk_space(name: str, root: Path) -> CheckResult:
    free = shutil.disk_usage(root).free
    detail = f"{free / GIB:.1f} GiB free"
    if free >= DISK_RECOMMENDED:
        return CheckResult(OK, f"disk of {name}", detail)
    state = WRONG if free < DISK_NEEDED else NOTE
    return CheckResult(
        state, f"disk of {name}", detail, "free space, or let the variable name a folder on another disk"
    )


def check_trainers_folder() -> CheckResult:
    """``nnUNet_extTrainer`` must include the trainers' folder of this package, whose files nnU-Net imports."""
    value = os.environ.get("nnUNet_extTrainer", "")
    trainers_folder = Path(next(iter(ext_trainers.__path__))).resolve()
    named = [Path(part).resolve() for part in value.split(os.pathsep) if part.strip()]
    if trainers_folder in named:
        return CheckResult(OK, "nnUNet_extTrainer", value)
    return CheckResult(WRONG, "nnUNet_extTrainer", f"names {value or 'nothing'}, not {trainers_folder}", EXPORT_COMMAND)


def check_workers() -> Iterator[CheckResult]:
    """Start method of the loader processes, and size of the shared memory."""
    yield CheckResult(OK, "start method", multiprocessing.get_start_method())
    if SHARED_MEMORY.is_dir():
        yield _check_shared_memory("shared memory", SHARED_MEMORY_NEEDED if get_allowed_n_proc_DA() else 0)
    else:
        yield CheckResult(NOTE, "shared memory", f"{SHARED_MEMORY} does not exist")


def _check_shared_memory(what: str, needed: int) -> CheckResult:
    """Whether the loaders' workers can hand over their batches: ``needed`` bytes, 0 without workers."""
    free = shutil.disk_usage(SHARED_MEMORY).free
    detail = f"{free / GIB:.2f} GiB free in {SHARED_MEMORY}, needed are {needed / GIB:.2f}"
    if free >= needed:
        return CheckResult(OK, what, detail)
    fix = f"docker run --shm-size={math.ceil(2 * needed / GIB)}g ..., or export nnUNet_n_proc_DA=0 (or fewer workers)"
    return CheckResult(WRONG, what, detail, fix)


def check_trainer_name(name: str) -> CheckResult:
    """Whether ``name`` is that of a trainer of this package, with valid tokens, or of one of nnU-Net's own."""
    of_host = method_of(name) is None and name.startswith(HOST_NAME)
    try:
        check_found(name) if of_host else settings_from_name(name)
    except InputError as error:
        return _result_of_problem(error.problems[0])
    return CheckResult(OK, "trainer", f"{name} learns from labeled cases only" if of_host else name)


def check_dataset(
    dataset: str, configurations: Sequence[str], plans: str, trainer: str | None = None
) -> Iterator[CheckResult]:
    """Plans, labeled and unlabeled cases of a data set; default ``configurations``: all that are preprocessed."""
    try:
        name = folders.dataset_name(dataset)
        file = folders.preprocessed_folder() / name / f"{plans}.json"
    except InputError as error:
        yield from map(_result_of_problem, error.problems)
        return
    missing = [needed for needed in (file, file.with_name("dataset.json")) if not needed.is_file()]
    if missing:
        fix = command_line("nnUNetv2_plan_and_preprocess", "-d", folders.dataset_number(name))
        yield CheckResult(WRONG, "plans", f"{missing[0]} is missing", fix)
        return
    try:
        manager = PlansManager(check_plans_file(file))
        check_dataset_name(file)
        check_dataset_file(file.with_name("dataset.json"))
    except InputError as error:
        yield from map(_result_of_problem, error.problems)
        return
    yield CheckResult(OK, "plans", f"{file}: {', '.join(manager.available_configurations)}")
    unknown = [asked for asked in configurations if asked not in manager.available_configurations]
    for asked in unknown:
        yield CheckResult(WRONG, "configuration", f"{asked} is not in the plans", f"see {file}")
    known = [asked for asked in configurations if asked not in unknown]
    chosen = known if configurations else _preprocessed_configurations(manager, file.parent)
    if not chosen and not unknown:
        fix = command_line("nnUNetv2_preprocess", "-d", folders.dataset_number(name), "-plans_name", plans)
        yield CheckResult(WRONG, "labeled cases", "nothing preprocessed", fix)
    for configuration in chosen:
        yield from _check_configuration(manager, configuration, file.parent, trainer)


def _check_configuration(
    manager: PlansManager, configuration: str, folder: Path, trainer: str | None
) -> Iterator[CheckResult]:
    labeled = folder / manager.get_configuration(configuration).data_identifier
    ours = (
        trainer_class(trainer) if trainer and method_of(trainer) and check_trainer_name(trainer).state == OK else None
    )
    cases = _check_labeled_cases(manager, configuration, labeled)
    yield cases
    refusals = list(_refusals(manager, configuration, labeled, ours))
    yield from refusals
    if cases.state != WRONG and not refusals:
        yield from _label_like_channels(configuration, labeled)
    if trainer is None or (ours is not None and ours.settings.unsupervised):
        yield from _check_unlabeled_cases(manager, configuration)
    if not refusals and (trainer is None or ours is not None):
        yield from _check_loaders(manager, configuration, folder, ours)


def _check_loaders(
    manager: PlansManager, configuration: str, folder: Path, trainer: type[Trainer] | None
) -> Iterator[CheckResult]:
    """Shared memory for the batches of a training, of the first method's defaults if no trainer is given."""
    workers = get_allowed_n_proc_DA()
    if not (workers and SHARED_MEMORY.is_dir()):
        return
    planned, dataset_json = manager.get_configuration(configuration), check_dataset_file(folder / "dataset.json")
    method_class = trainer.method_class if trainer else METHODS[0]
    settings = trainer.settings if trainer else method_class.Settings()
    method = method_class(settings, task_of(manager, configuration, dataset_json))
    batch = settings.batch or max(planned.batch_size, 2)
    unlabeled = (settings.unlabeled_batch or batch) if settings.unsupervised else 0
    views = 1 if settings.gpu_views else len(method.unlabeled_views)
    channels, validating = determine_num_input_channels(manager, planned, dataset_json), -(-workers // 2)
    joint = bytes_of_batch(batch, unlabeled, views, channels, planned.patch_size, method.label_maps if unlabeled else 0)
    labeled = bytes_of_batch(batch, 0, 0, channels, planned.patch_size)
    needed = shared_memory_needed(joint, workers) + shared_memory_needed(labeled, validating)
    yield _check_shared_memory(f"shared memory, {configuration}", max(needed, SHARED_MEMORY_NEEDED))


def _preprocessed_configurations(manager: PlansManager, folder: Path) -> list[str]:
    candidates = {one: manager.get_configuration(one) for one in manager.available_configurations}
    trainable = {one: found for one, found in candidates.items() if found.previous_stage_name is None}
    return [one for one, found in trainable.items() if (folder / found.data_identifier).is_dir()]


def _check_labeled_cases(manager: PlansManager, configuration: str, labeled: Path) -> CheckResult:
    count = len(list(labeled.glob("*.pkl")))
    what = f"labeled cases, {configuration}"
    if not count:
        return CheckResult(WRONG, what, f"none in {labeled}", preprocess_command(manager, configuration))
    problem = folds_problem(configuration, labeled)
    return CheckResult(NOTE, what, problem.detail, problem.fix) if problem else CheckResult(OK, what, str(count))


def _label_like_channels(configuration: str, labeled: Path) -> Iterator[CheckResult]:
    for channel, share in label_like_channels(labeled).items():
        detail = f"{share:.0%} of its variance follows from the label".replace("%", " %")
        fix = "leave it out, unless it is made without the label and new cases have it, too"
        yield CheckResult(NOTE, f"channel {channel}, {configuration}", detail, fix)


def _refusals(
    manager: PlansManager, configuration: str, labeled: Path, trainer: type[Trainer] | None
) -> Iterator[CheckResult]:
    """What the trainer refuses in plans, labels and settings, by the functions that it asks itself."""
    dataset_json = check_dataset_file(labeled.with_name("dataset.json"))
    cases = [file.stem for file in labeled.glob("*.pkl")]
    command = preprocess_command(manager, configuration)
    labels, ending = labeled.with_name("gt_segmentations"), dataset_json["file_ending"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    questions: list[Callable[[], None]] = [
        partial(check_requirements, manager.plans, configuration, device),
        partial(check_labels, labels, cases, ending, command),
    ]
    splits = labeled.with_name("splits_final.json")
    try:
        folds = check_splits(splits, cases) or [{"train": cases, "val": cases}]
    except InputError as error:
        yield from map(_result_of_problem, error.problems)
        folds = []
    questions += [partial(check_cases, labeled, fold["train"], fold["val"], command) for fold in folds if cases]
    if trainer is not None:
        questions += [
            lambda: check_settings(trainer, task_of(manager, configuration, dataset_json)),
            partial(check_network, trainer, manager, configuration, dataset_json),
            partial(check_writable, run_folder(manager.plans, trainer.__name__, configuration, "all")),
        ]
    try:
        run_all(questions)
    except InputError as error:
        yield from map(_result_of_problem, error.problems)


def _check_unlabeled_cases(manager: PlansManager, configuration: str) -> Iterator[CheckResult]:
    what = f"unlabeled cases, {configuration}"
    fix = unlabeled_folder_of(manager, configuration, manager.plans_name).command
    try:
        if is_preprocessed(manager, configuration):
            yield CheckResult(OK, what, str(len(trainable_cases(manager, configuration, verify=False))))
            return
        raw = folders.unlabeled_images_folder(manager.dataset_name)
        if raw.is_dir() and any(raw.iterdir()):
            count = len(raw_case_names(manager.dataset_name))
            yield CheckResult(NOTE, what, f"{count} not preprocessed yet; the trainer does it at its start", fix)
        else:
            yield CheckResult(WRONG, what, f"none in {raw}", f"put unlabeled images into it, then {fix}")
    except InputError as error:
        yield from map(_result_of_problem, error.problems)


def _result_of_problem(problem: Problem) -> CheckResult:
    where = f"{problem.where}: " if str(problem.where) else ""
    return CheckResult(WRONG, problem.what, f"{where}{problem.detail}", problem.fix)
