"""What a protocol is asked to do, its split lists, and the environment of its commands.

Limit: decides and records; runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from benchmarks.protocol.folder_data import SPLITS, described, read_folder, read_lists, roles_of
from nnunetv2_crossmatch import ext_trainers
from nnunetv2_crossmatch.dataset_conversion import Dataset501_LA, Dataset502_ACDC
from nnunetv2_crossmatch.dataset_conversion.splits import read_splits
from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.folders import write_json
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.training.record import differences

SOURCES = {"la": Dataset501_LA.DATASET, "acdc": Dataset502_ACDC.DATASET}
FOLDER = "folder"
"""The kind of data set that is a folder of images, labels and split lists."""
IDS = {"la": 501, "acdc": 502, FOLDER: 503}
ALL_LABELED = 50
"""Added to the id: the same cases, every training case labeled."""
PREDICTED = 100
"""Added to the id, with a number from 1 on: labeled cases and unlabeled ones with predicted labels."""
SMALL_SPACING_MM = {"la": 1.25, "acdc": 2.5}
SMALL_PATCH = (96, 96)
PLANNERS = {"plain": "", "ResEncM": "nnUNetPlannerResEncM", "ResEncL": "nnUNetPlannerResEncL"}
PLANNED = {"plain": "nnUNetPlans", "ResEncM": "nnUNetResEncUNetMPlans", "ResEncL": "nnUNetResEncUNetLPlans"}
HELD_OUT = 10
ROOT = Path(__file__).parents[2]
RECORD = "protocol.json"
GROWING = ("trainer", "seeds", "rows")
"""What later calls in the same folder may add to."""


@dataclass(frozen=True)
class Request:
    """What decides the numbers of a protocol; a folder belongs to one request, whose :data:`GROWING` may grow."""

    dataset: str
    labeled: int
    trainer: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float | None
    steps: int | None
    data: str
    rows: tuple[str, ...]
    scored_on: str
    configuration: str
    network: str
    small: int | None
    diagnose: bool
    splits: str | None
    spacing: tuple[float, float, float] | None
    allow_missing: bool
    step_seconds: tuple[float, float] | None
    device: str
    patch: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    threads: int | None = None
    step_times: str | None = None
    prediction_seconds: float | None = None

    @property
    def needs_all_labeled(self) -> bool:
        """Whether the second data set, with every training case labeled, is made."""
        return self.diagnose or "upper_bound" in self.rows

    def dataset_name(self, added: int = 0) -> str:
        """``DatasetXXX_Name``."""
        return f"Dataset{self.dataset_id(added)}_{self.name}"

    @property
    def name(self) -> str:
        """Name of the data; that of a folder without what nnU-Net does not take in names."""
        if self.dataset in SOURCES:
            return SOURCES[self.dataset].name
        return re.sub(r"\W|__+", "", Path(self.data).name) or "Folder"

    @property
    def splits_file(self) -> Path:
        """The split lists that are asked for."""
        if self.splits:
            return Path(self.splits)
        return SOURCES[self.dataset].shipped_splits if self.dataset in SOURCES else Path(self.data) / SPLITS

    def dataset_id(self, added: int = 0) -> int:
        """Id of the data set itself; :data:`ALL_LABELED` is added for every case labeled, more for predicted labels."""
        return IDS[self.dataset] + added


def form_of(kind: type) -> dict[Any, Any]:
    """The form of a dataclass of plain values in a JSON file: the fields without default, and no others."""
    hints = get_type_hints(kind)
    needed = {field.name: field.default is MISSING for field in fields(kind)}
    return {name + "?" * (not needed[name]): _form(hints[name]) for name in needed} | {...: ()}


def _form(hint: Any) -> Any:
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        return [parts[0]]
    return tuple(map(_form, parts)) if parts else (None if hint is NoneType else hint)


DEFAULTS = {field.name: field.default for field in fields(Request) if field.default is not MISSING}
"""Of what records of earlier versions lack."""


def request_of(arguments: argparse.Namespace, device: str) -> Request:
    """The request in parsed arguments, with absolute paths."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in vars(arguments).items()}
    for name in ("data", "splits", "step_times"):
        given[name] = given[name] and str(given[name].resolve())
    names = Request.__dataclass_fields__
    chosen = {key: value for key, value in given.items() if key in names and (value is not None or key not in DEFAULTS)}
    return Request(**chosen, device=device)


def claim_folder(folder: Path, request: Request) -> Request:
    """Record the request in ``folder``; returns it with the trainers, seeds and rows of earlier calls before its own.

    Raises:
        InputError: another request is recorded there; the differences are listed.
    """
    record = folder / RECORD
    if record.exists():
        request = _joined(asdict(read_request(record)), request, record)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, asdict(request))
    return request


def read_request(record: Path) -> Request:
    """The request in ``record``.

    Raises:
        InputError: it is none.
    """
    return Request(**read_json(record, form_of(Request), "choose another --folder, or remove this one"))


def _joined(recorded: Mapping[str, Any], request: Request, file: Path) -> Request:
    before = {**json.loads(json.dumps(DEFAULTS)), **recorded}
    before["rows"] = ["semi_supervised" if row == "crossmatch" else row for row in before["rows"]]  # its old name
    joined = {name: tuple(dict.fromkeys([*before[name], *getattr(request, name)])) for name in GROWING}
    request = replace(request, **joined)
    found = list(differences({**before, **joined}, asdict(request)))
    if found:
        fix = "repeat the arguments, choose another --folder, or remove this one"
        raise InputError(Problem("folder of another protocol", file, "; ".join(found), fix))
    return request


def split_lists(request: Request) -> dict[str, list[str]]:
    """Labeled, unlabeled, val and test cases or patients.

    Where val is scored and the lists have none (LA), the last :data:`HELD_OUT` unlabeled cases are held out.

    Raises:
        InputError: the lists are faulty, name no unlabeled case, or nothing is left to score.
    """
    file = request.splits_file
    if request.dataset == FOLDER:
        lists = read_lists(file, request.labeled)
    else:
        lists = read_splits(file, request.labeled, SOURCES[request.dataset].patient_of)
    if request.scored_on == "val" and not lists["val"] and len(lists["unlabeled"]) > HELD_OUT:
        lists["unlabeled"], lists["val"] = lists["unlabeled"][:-HELD_OUT], lists["unlabeled"][-HELD_OUT:]
    if not lists["unlabeled"]:
        fix = 'list cases as "unlabeled", or label fewer with --labeled'
        raise InputError(Problem("no unlabeled case", file, "every training case is labeled", fix))
    if not lists[request.scored_on]:
        fix = f'add "{request.scored_on}" to the file and give it with --splits'
        raise InputError(Problem("nothing to score", file, f'"{request.scored_on}" is empty', fix))
    return lists


def check_data(request: Request, lists: Mapping[str, list[str]]) -> None:
    """See to it, before hours of training, that there is something to score; the rest is the converter's to check.

    Raises:
        InputError: no folder, none of the cases of the scored list in it, or a folder that cannot be converted.
    """
    data = Path(request.data)
    if not data.is_dir():
        raise InputError(Problem("folder missing", data, "given with --data", "check the path"))
    wanted = set(lists[request.scored_on])
    if not wanted & _names_in(request, lists):
        fix = "give the folder that holds them, another list (--on) or own lists (--splits)"
        detail = f'it holds none of the {len(wanted)} entries of the list "{request.scored_on}"'
        raise InputError(Problem("nothing to score", data, detail, fix))


def _names_in(request: Request, lists: Mapping[str, list[str]]) -> set[str]:
    """Cases and patients that the data hold."""
    data = Path(request.data)
    if request.dataset == FOLDER:
        content = read_folder(data)
        each = [lists, all_labeled(lists)] if request.needs_all_labeled else [lists]
        roles = [roles_of(content, one, request.allow_missing)[0] for one in each]
        labels = [described(content, one, request.classes, request.channels)["labels"] for one in roles]
        if labels[0] != labels[-1]:
            detail = f"{len(labels[0])} labels in labeled and scored cases, {len(labels[-1])} in all"
            raise InputError(Problem("labels differ between cases", data, detail, "name all of them with --classes"))
        return set(roles[0])
    found = [case for find in SOURCES[request.dataset].finders.values() for case in find(data).cases]
    return {name for case in found for name in (case.identifier, case.patient)}


def all_labeled(lists: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The same lists with every training case labeled."""
    return {**lists, "labeled": [*lists["labeled"], *lists["unlabeled"]], "unlabeled": []}


def processes() -> str:
    """Cases in work at once, where a command does not take it from ``nnUNet_def_n_proc`` by itself."""
    return os.environ.get("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))


def variables(folder: Path, request: Request) -> dict[str, str]:
    """Environment variables that the commands get beside this process's own; nnU-Net's folders are in ``folder``."""
    roots = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    usual = {"nnUNet_compile": "f", "nnUNet_def_n_proc": processes()}
    if request.device == "cpu":  # page faults of large tensors cost half of the time, spinning threads the rest
        usual |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "60000000000", "OMP_WAIT_POLICY": "PASSIVE"}
        usual |= {"nnUNet_n_proc_DA": "1"}
    return {
        **{name: os.environ.get(name, value) for name, value in usual.items()},
        **({"OMP_NUM_THREADS": str(request.threads)} if request.threads else {}),
        **roots,
        "nnUNet_extTrainer": next(iter(ext_trainers.__path__)),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }


def environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with ``added``, and this interpreter's commands first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **added, "PATH": path}
