"""Whether a training would start here: versions, device, variables, folders, space, and one data set.

Limit: looks only; changes nothing, starts nothing and does not read the unlabeled files (the trainer does).
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch import ext_trainers, folders
from nnunetv2_crossmatch.data.preprocessing import is_preprocessed, raw_case_names, trainable_cases
from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.training.requirements import EXCLUDED_TORCH, c_compiler, folds_problem

OK, NOTE, WRONG = "ok", "note", "wrong"
GIB = 1024**3
DISK_NEEDED, DISK_ADVISED = 1 * GIB, 20 * GIB
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_NEEDED = GIB // 8  # containers often have 64 MiB, on which loader workers die with a bus error
SHOWN = ("nnunetv2_crossmatch", "nnunetv2", "torch", "batchgenerators", "batchgeneratorsv2", "acvl-utils", "numpy")
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
SHELL_DOOR = 'export nnUNet_extTrainer="$(nnUNetv2_crossmatch_trainers)"'


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ``state`` is ok, note (training starts all the same) or wrong; ``fix`` mends it."""

    state: str
    what: str
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        remedy = f"\n{'':9}fix: {self.fix}" if self.fix else ""
        return f"{self.state:>5}    {self.what}: {self.detail}{remedy}"


def check_all(dataset: str | None, configurations: Sequence[str], plans: str) -> Iterator[Finding]:
    """All findings in the order in which they are worth mending; ``dataset`` by id or name, if any."""
    yield from check_versions()
    yield from check_device()
    yield from check_roots()
    yield check_door()
    yield from check_workers()
    if dataset is not None:
        yield from check_dataset(dataset, configurations, plans)


def check_versions() -> Iterator[Finding]:
    """What is installed; versions that the host or this package exclude are wrong."""
    found = {name: _version(name) for name in SHOWN}
    listed = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    yield Finding(OK, "installed", f"Python {platform.python_version()}, {listed}")
    if not (found["nnunetv2"] or "").startswith("2.8"):
        detail = f"version {found['nnunetv2']}, needed is 2.8"
        yield Finding(WRONG, "nnU-Net", detail, 'pip install "nnunetv2>=2.8,<2.9"')
    if torch.__version__.startswith(EXCLUDED_TORCH):
        detail = f"version {torch.__version__}: nnU-Net excludes 2.9"
        yield Finding(WRONG, "torch", detail, 'pip install "torch!=2.9.*"')


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_device() -> Iterator[Finding]:
    """GPU and, where the host would compile the network, the compiler that this needs."""
    if not torch.cuda.is_available():
        yield Finding(NOTE, "CUDA", "no GPU that torch can use: training is slow", "nnUNetv2_train ... -device cpu")
        return
    yield Finding(OK, "CUDA", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    if os.environ.get("nnUNet_compile", "t").lower() not in ("true", "1", "t"):
        yield Finding(OK, "torch.compile", "switched off by nnUNet_compile")
        return
    compiler = c_compiler()
    if compiler is None:
        yield Finding(WRONG, "torch.compile", "no C compiler found", "export nnUNet_compile=f")
    else:
        yield Finding(OK, "torch.compile", compiler)


def check_roots() -> Iterator[Finding]:
    """The host's three folders: named, there, writable, with space left."""
    for name in VARIABLES:
        try:
            root = folders.root_folder(name)
        except InputError as error:
            yield from map(_wrong, error.problems)
            continue
        yield _writable(name, root)
        yield _space(name, root)


def _writable(name: str, root: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=root):
            return Finding(OK, name, str(root))
    except OSError as error:
        state = NOTE if name == "nnUNet_raw" else WRONG  # training only reads the raw images
        return Finding(state, name, f"{root} is not writable ({error.strerror})", f'chmod u+w "{root}"')


def _space(name: str, root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    detail = f"{free / GIB:.1f} GiB free"
    if free >= DISK_ADVISED:
        return Finding(OK, f"disk of {name}", detail)
    state = WRONG if free < DISK_NEEDED else NOTE
    return Finding(state, f"disk of {name}", detail, "free space, or let the variable name a folder on another disk")


def check_door() -> Finding:
    """``nnUNet_extTrainer`` must name our folder with the re-export file: the host imports all it finds there."""
    value = os.environ.get("nnUNet_extTrainer", "")
    door = Path(next(iter(ext_trainers.__path__))).resolve()
    named = [Path(part).resolve() for part in value.split(os.pathsep) if part.strip()]
    if door in named:
        return Finding(OK, "nnUNet_extTrainer", value)
    return Finding(WRONG, "nnUNet_extTrainer", f"names {value or 'nothing'}, not {door}", SHELL_DOOR)


def check_workers() -> Iterator[Finding]:
    """How loader processes start and whether the memory that they share suffices."""
    yield Finding(OK, "start method", multiprocessing.get_start_method())
    if not SHARED_MEMORY.is_dir():
        yield Finding(NOTE, "shared memory", f"{SHARED_MEMORY} does not exist")
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    detail = f"{free / GIB:.2f} GiB free in {SHARED_MEMORY}"
    if free >= SHARED_MEMORY_NEEDED or os.environ.get("nnUNet_n_proc_DA") == "0":
        yield Finding(OK, "shared memory", detail)
    else:
        yield Finding(WRONG, "shared memory", detail, "docker run --shm-size=8g ..., or export nnUNet_n_proc_DA=0")


def check_dataset(dataset: str, configurations: Sequence[str], plans: str) -> Iterator[Finding]:
    """Plans, labeled and unlabeled cases of a data set; without ``configurations`` of the preprocessed ones."""
    try:
        name = folders.dataset_name(dataset)
        file = folders.preprocessed_folder() / name / f"{plans}.json"
    except InputError as error:
        yield from map(_wrong, error.problems)
        return
    if not file.is_file():
        yield Finding(WRONG, "plans", f"{file} is missing", f"nnUNetv2_plan_and_preprocess -d {dataset}")
        return
    manager = PlansManager(load_json(str(file)))
    yield Finding(OK, "plans", f"{file}: {', '.join(manager.available_configurations)}")
    unknown = [asked for asked in configurations if asked not in manager.available_configurations]
    for asked in unknown:
        yield Finding(WRONG, "configuration", f"{asked} is not in the plans", f"see {file}")
    known = [asked for asked in configurations if asked not in unknown]
    chosen = known if configurations else _preprocessed(manager, file.parent)
    if not chosen and not unknown:
        fix = f"nnUNetv2_preprocess -d {dataset} -plans_name {plans}"
        yield Finding(WRONG, "labeled cases", "nothing preprocessed", fix)
    for configuration in chosen:
        yield _labeled(manager, configuration, file.parent, dataset)
        yield from _unlabeled(manager, configuration, dataset)


def _preprocessed(manager: PlansManager, folder: Path) -> list[str]:
    candidates = {one: manager.get_configuration(one) for one in manager.available_configurations}
    trainable = {one: found for one, found in candidates.items() if found.previous_stage_name is None}
    return [one for one, found in trainable.items() if (folder / found.data_identifier).is_dir()]


def _labeled(manager: PlansManager, configuration: str, folder: Path, dataset: str) -> Finding:
    labeled = folder / manager.get_configuration(configuration).data_identifier
    count = len(list(labeled.glob("*.pkl")))
    what = f"labeled cases, {configuration}"
    if not count:
        fix = f"nnUNetv2_preprocess -d {dataset} -c {configuration} -plans_name {manager.plans_name}"
        return Finding(WRONG, what, f"none in {labeled}", fix)
    problem = folds_problem(configuration, labeled)
    return Finding(NOTE, what, problem.detail, problem.fix) if problem else Finding(OK, what, str(count))


def _unlabeled(manager: PlansManager, configuration: str, dataset: str) -> Iterator[Finding]:
    what = f"unlabeled cases, {configuration}"
    fix = f"nnUNetv2_crossmatch_preprocess -d {dataset} -c {configuration} -p {manager.plans_name}"
    try:
        if is_preprocessed(manager, configuration):
            yield Finding(OK, what, str(len(trainable_cases(manager, configuration, verify=False))))
            return
        raw = folders.unlabeled_images_folder(manager.dataset_name)
        if raw.is_dir() and any(raw.iterdir()):
            count = len(raw_case_names(manager.dataset_name))
            yield Finding(NOTE, what, f"{count} not preprocessed yet; the trainer does it at its start", fix)
        else:
            yield Finding(WRONG, what, f"none in {raw}", f"put unlabeled images into it, then {fix}")
    except InputError as error:
        yield from map(_wrong, error.problems)


def _wrong(problem: Problem) -> Finding:
    where = f"{problem.where}: " if str(problem.where) else ""
    return Finding(WRONG, problem.what, f"{where}{problem.detail}", problem.fix)
