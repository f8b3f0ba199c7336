"""Requirements of a training, checked before it starts; each problem is one line with its fix.

Limit: machine and plans; ``data.preprocessing`` checks the unlabeled cases, the command ``check`` more.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sysconfig
import tempfile
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.data.manifest import ENDINGS
from nnunetv2_crossmatch.data.plans_check import check_dataset_form, check_dataset_name, check_plans, check_plans_form
from nnunetv2_crossmatch.errors import (
    InputError,
    Problem,
    UnsupportedError,
    command_line,
    raise_if_any,
    system_reason,
    variable_not_set,
)
from nnunetv2_crossmatch.folders import dataset_number
from nnunetv2_crossmatch.json_files import MissingFileError, read_json

NEEDED_VARIABLES = ("nnUNet_preprocessed", "nnUNet_results")
EXCLUDED_TORCH = "2.9."
"""nnU-Net excludes these versions from its own requirements."""
COMPILED_VARIANTS = 64  # of one function
HOST_FOLDS = 5
"""As many folds nnU-Net makes where no file names others."""
WANDB_SWITCH = "nnUNet_wandb_enabled"
WANDB_VALUES = {"0": False, "False": False, "false": False, "1": True, "True": True, "true": True}
"""The values that nnU-Net allows for its switch of the logging to Weights & Biases."""


def check_requirements(plans: dict, configuration: str, device: torch.device) -> None:
    """Raise one error with everything that is missing to train ``configuration`` on ``device``.

    Raises:
        UnsupportedError: the configuration needs the predictions of a previous stage.
        InputError: the plans are of another data set, their patch does not fit their network, a variable is not set,
            torch is a version that the host excludes, there is no GPU, or no package for the logging that is on.
    """
    check_no_cascade(plans, configuration)
    check_plans_of_training_command()
    raise_if_any([*_unmet(device), *patch_problems(plans, configuration)])


def run_folder(plans: dict, trainer: str, configuration: str, fold: int | str) -> Path:
    """The output folder of a run, as the host names it."""
    manager = PlansManager(plans)
    model = f"{trainer}__{manager.plans_name}__{configuration}"
    return Path(os.environ["nnUNet_results"]) / manager.dataset_name / model / f"fold_{fold}"


def check_writable(folder: Path) -> None:
    """Raise :class:`InputError` if ``folder``, or the nearest one above it that exists, may not be written to."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        fix = f"{command_line('chmod', 'u+w', nearest)}, or use another folder"
        raise InputError(Problem("not writable", nearest, system_reason(error), fix)) from error


def logs_to_wandb() -> bool:
    """Whether the host will log to Weights & Biases."""
    return WANDB_VALUES.get(os.environ.get(WANDB_SWITCH, "0"), False)


def patch_problems(plans: dict, configuration: str) -> Iterator[Problem]:
    """Problem of a patch with other axes than the network's strides, or with sides that these do not divide.

    Its first step would fail. Plans that were edited have it; those of architectures without strides are not checked.
    """
    planned = PlansManager(plans).get_configuration(configuration)
    strides = planned.network_arch_init_kwargs.get("strides")
    if not strides:
        return
    sides = planned.patch_size
    steps = [_per_axis(stride, len(sides)) for stride in strides]
    if any(len(step) != len(sides) for step in steps):
        detail = f"the patch {list(sides)} has {len(sides)} axes, the strides of the network are {strides}"
        yield Problem("patch does not fit the network", configuration, detail, "give all of them as many axes")
        return
    factors = [math.prod(axis) for axis in zip(*steps, strict=True)]
    if any(side % factor for side, factor in zip(sides, factors, strict=True)):
        detail = f"the patch {list(sides)} is not divisible by {factors}, the strides of the network"
        fitting = [max(1, round(side / factor)) * factor for side, factor in zip(sides, factors, strict=True)]
        yield Problem("patch does not fit the network", configuration, detail, f'set "patch_size" to {fitting}')


def _per_axis(stride: int | Sequence[int], axes: int) -> Sequence[int]:
    return [stride] * axes if isinstance(stride, int) else stride


def check_contents(plans: dict, configuration: str, dataset_json: dict) -> None:
    """Check the form of what the host has read from ``plans.json`` and ``dataset.json``.

    Raises:
        InputError: an entry is missing or something else, or there is no such configuration.
    """
    file = next(_plans_files_of_training_command(), Path("plans.json"))
    check_plans(plans, file)
    check_plans_form(plans, file)
    check_dataset_form(dataset_json, file.with_name("dataset.json"))
    if configuration not in plans["configurations"]:
        fix = f"choose from {', '.join(plans['configurations'])}"
        raise InputError(Problem("configuration unknown", file, configuration, fix))


def check_plans_of_training_command() -> None:
    """Check that ``nnUNetv2_train`` was asked for the data set that its plans name.

    The host gives a trainer the content of the plans file without its path, so that the path is taken from the call.
    Trainers that are made otherwise, as for a prediction, are not checked.

    Raises:
        InputError: the plans in the folder of the asked data set name another one, which would be trained.
    """
    for file in _plans_files_of_training_command():
        check_dataset_name(file)


def _plans_files_of_training_command() -> Iterator[Path]:
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code.co_name == "get_trainer_from_args":
            yield Path(frame.f_locals["plans_file"])


def check_no_cascade(plans: dict, configuration: str) -> None:
    """Raise :class:`UnsupportedError` for a configuration that needs the predictions of a previous stage."""
    previous = PlansManager(plans).get_configuration(configuration).previous_stage_name
    if previous is not None:
        detail = f"it needs predictions of {previous} as input, which unlabeled cases do not have"
        fix = "train 3d_fullres, or 3d_lowres"
        raise UnsupportedError(Problem("cascade not supported", configuration, detail, fix))


def _unmet(device: torch.device) -> Iterator[Problem]:
    for name in NEEDED_VARIABLES:
        if not os.environ.get(name):
            yield variable_not_set(name)
    if torch.__version__.startswith(EXCLUDED_TORCH):
        detail = f"version {torch.__version__}: nnU-Net excludes {EXCLUDED_TORCH}x"
        yield Problem("torch not usable", "", detail, f'pip install "torch!={EXCLUDED_TORCH}*"')
    if device.type == "cuda" and not torch.cuda.is_available():
        yield Problem("no GPU", "", "torch finds no CUDA device", "nnUNetv2_train ... -device cpu, or mend the driver")
    yield from _wandb_problems()


def _wandb_problems() -> Iterator[Problem]:
    value = os.environ.get(WANDB_SWITCH, "0")
    if value not in WANDB_VALUES:
        yield Problem("unknown value", "", f"{WANDB_SWITCH} is {value}", f"export {WANDB_SWITCH}=0, or 1")
    elif WANDB_VALUES[value] and importlib.util.find_spec("wandb") is None:
        fix = f"pip install wandb, or export {WANDB_SWITCH}=0"
        yield Problem("wandb not installed", "", f"{WANDB_SWITCH} asks nnU-Net to log to it", fix)


def folds_problem(configuration: str, labeled: Path) -> Problem | None:
    """The problem of too few preprocessed cases in ``labeled`` for nnU-Net's five folds, if there is one."""
    count, own = len(list(labeled.glob("*.pkl"))), labeled.parent / "splits_final.json"
    if count >= HOST_FOLDS or own.is_file():
        return None
    fix = f"nnUNetv2_train ... {configuration} all, or folds of your own in {own}"
    return Problem(
        "too few labeled cases for folds", labeled, f"{count} are there, nnU-Net makes {HOST_FOLDS} folds", fix
    )


def check_folds(fold: int | str, configuration: str, labeled: Path) -> None:
    """Raise :class:`InputError` if nnU-Net cannot make ``fold`` of the preprocessed cases ``labeled``."""
    problem = folds_problem(configuration, labeled)
    if problem and fold != "all":
        raise InputError(problem)


def check_splits(file: Path, cases: Collection[str], fold: int | None = None) -> list[dict[str, list[str]]]:
    """Check the file of folds ``splits_final.json``; returns them, none if there is no file.

    Args:
        file: of the preprocessed data set.
        cases: the preprocessed labeled cases.
        fold: its cases are compared with ``cases``; None for those of all folds.

    Raises:
        InputError: it is no list of folds, or names cases that are not there.
    """
    fix = "restore it, or remove it: nnU-Net then makes folds of its own"
    try:
        splits = read_json(file, [{"train": [str], "val": [str]}], fix, "unusable folds")
    except MissingFileError:
        return []
    chosen = splits if fold is None else splits[fold : fold + 1]
    if unknown := sorted({case for one in chosen for case in (*one["train"], *one["val"])} - {*cases}):
        detail = f"{len(unknown)} cases are not preprocessed, the first is {unknown[0]}"
        raise InputError(Problem("folds of other cases", file, detail, fix))
    return list(splits)


def check_labels(labels: Path, cases: Iterable[str], ending: str, command: str) -> None:
    """Check that the labels which nnU-Net's validation at the end of a training reads are in the folder ``labels``.

    Args:
        labels: ``gt_segmentations`` of the preprocessed data set.
        cases: the validation cases.
        ending: of the files.
        command: what writes the folder.

    Raises:
        InputError: labels are missing, as in a data set that was moved without them.
    """
    expected = sorted(cases)
    missing = [case for case in expected if not (labels / f"{case}{ending}").is_file()]
    if missing:
        detail = f"{len(missing)} of {len(expected)} cases have no label there, the first is {missing[0]}{ending}"
        fix = f"copy labelsTr of the raw data set to it, or {command}"
        raise InputError(Problem("labels for the validation missing", labels, detail, fix))


def check_cases(labeled: Path, training: Sequence[str], validation: Sequence[str], command: str) -> None:
    """Check that the preprocessed cases of a fold are there, and whole.

    Args:
        labeled: folder of the preprocessed labeled cases.
        training, validation: cases of the fold.
        command: what preprocesses them.

    Raises:
        InputError: the fold has no case; or a preprocessing was interrupted, which a worker of the loader would find,
            with an error that does not name the case.
    """
    splits = labeled.with_name("splits_final.json")
    parts = {"training": training, "validation": validation}
    problems = [
        Problem("fold without cases", splits, f"no {part} cases", "add some") for part in parts if not parts[part]
    ]
    cases = sorted({*training, *validation})
    if half := [case for case in cases if not _is_whole(labeled, case)]:
        detail = f"files of {len(half)} cases are missing or empty, the first is {half[0]}: it was interrupted"
        problems.append(Problem("preprocessing incomplete", labeled, detail, command))
    raise_if_any(problems)


def _is_whole(labeled: Path, case: str) -> bool:
    """Whether all files of a preprocessed case have content; older versions of nnU-Net wrote voxels as npz."""
    endings = (".npz", ".pkl") if (labeled / f"{case}.npz").exists() else ENDINGS
    return all(file.is_file() and file.stat().st_size for file in (labeled / f"{case}{end}" for end in endings))


def preprocess_command(plans_manager: PlansManager, configuration: str) -> str:
    """The host's command that preprocesses the labeled cases."""
    number = dataset_number(plans_manager.dataset_name)
    options = ("-d", number, "-c", configuration, "-plans_name", plans_manager.plans_name)
    return command_line("nnUNetv2_preprocess", *options)


def check_samples_per_process(unlabeled: int, processes: int) -> None:
    """Raise :class:`InputError` if a step's ``unlabeled`` samples do not suffice for one per process."""
    if unlabeled < processes:
        detail = f"{unlabeled} unlabeled samples per step for {processes} processes"
        raise InputError(Problem("batch too small", "", detail, "raise ubatch<n> (or batch<n>), or use fewer GPUs"))


def prepare_compiler(deterministic: bool = False) -> None:
    """Settings of ``torch.compile`` for a training.

    Each set of drawn students and each batch size is a variant with sizes of its own; beyond torch's limit of 8 they
    would run eagerly, and sizes that become symbols make slower code.

    Args:
        deterministic: do not choose among kernels by timing, where torch can do without (from 2.10 on).
    """
    torch._dynamo.config.cache_size_limit = COMPILED_VARIANTS
    torch._dynamo.config.automatic_dynamic_shapes = False
    inductor: Any = importlib.import_module("torch._inductor.config")
    if hasattr(inductor, "deterministic"):
        inductor.deterministic = deterministic


def check_compiler() -> None:
    """Raise :class:`InputError` if ``torch.compile``, which the host uses by default, lacks what it builds with."""
    if missing := missing_for_compiler():
        detail = f"torch.compile needs {' and '.join(missing)}"
        raise InputError(Problem("torch.compile not usable", "", detail, "install it, or export nnUNet_compile=f"))


def missing_for_compiler() -> list[str]:
    """What Triton, which ``torch.compile`` uses on a GPU, builds its launchers with and does not find here."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    needs = {
        "a C compiler": c_compiler() is not None,
        f"Python's headers ({header}, Debian: python3-dev)": header.is_file(),
        "Triton": importlib.util.find_spec("triton") is not None,
    }
    return [what for what, found in needs.items() if not found]


def c_compiler() -> str | None:
    """The C compiler that ``torch.compile`` would find, if any."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
