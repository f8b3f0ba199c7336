"""Requirements of a training, checked before it starts; each problem is one line with its fix.

Limit: machine and plans; ``data.preprocessing`` checks the unlabeled cases, the command ``check`` more.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.data.plans_check import check_dataset_name
from nnunetv2_crossmatch.errors import InputError, Problem, UnsupportedError, raise_if_any, variable_not_set

NEEDED_VARIABLES = ("nnUNet_preprocessed", "nnUNet_results")
EXCLUDED_TORCH = "2.9."
"""nnU-Net excludes these versions from its own requirements."""
COMPILED_VARIANTS = 64  # of one function
HOST_FOLDS = 5
"""As many folds nnU-Net makes where no file names others."""


def check_requirements(plans: dict, configuration: str, device: torch.device) -> None:
    """Raise one error with everything that is missing to train ``configuration`` on ``device``.

    Raises:
        UnsupportedError: the configuration needs the predictions of a previous stage.
        InputError: the plans are of another data set, a variable is not set, torch is a version that the host excludes,
            or there is no GPU.
    """
    check_no_cascade(plans, configuration)
    check_plans_of_training_command()
    raise_if_any(list(_unmet(device)))


def check_plans_of_training_command() -> None:
    """Check that ``nnUNetv2_train`` was asked for the data set that its plans name.

    The host gives a trainer the content of the plans file without its path, so that the path is taken from the call.
    Trainers that are made otherwise, as for a prediction, are not checked.

    Raises:
        InputError: the plans in the folder of the asked data set name another one, which would be trained.
    """
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code.co_name == "get_trainer_from_args":
            check_dataset_name(Path(frame.f_locals["plans_file"]))


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


def preprocess_command(plans_manager: PlansManager, configuration: str) -> str:
    """The host's command that preprocesses the labeled cases."""
    options = ("-d", plans_manager.dataset_name, "-c", configuration, "-plans_name", plans_manager.plans_name)
    return shlex.join(("nnUNetv2_preprocess", *options))


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
