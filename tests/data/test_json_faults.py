"""Every JSON file that a command reads, altered: used, or refused in one line that names it, and nothing is written.

Each entry is left out, or replaced by a value of another type or size, one or two at a time; and the file as a whole
is empty, cut off, nested too deep, not UTF-8, and so on. Limit: altered values of the right form may be accepted.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from benchmarks.protocol import folder_data, prepare, results, timing
from benchmarks.protocol.request import Request, read_request
from benchmarks.protocol.rows import Run
from benchmarks.protocol.steps import read_runs
from nnunetv2_crossmatch.cli.environment_checks import WRONG, check_dataset
from nnunetv2_crossmatch.data.diagnosis import read_sources
from nnunetv2_crossmatch.data.manifest import Manifest, find_damaged_cases, read_manifest, sources_changed
from nnunetv2_crossmatch.data.plans_check import (
    check_dataset_file,
    check_dataset_name,
    check_plans_file,
    check_plans_form,
)
from nnunetv2_crossmatch.data.preprocessing import _plans_manager, _raw_cases, _select_configurations
from nnunetv2_crossmatch.data.unlabeled_folder import unlabeled_folder_of
from nnunetv2_crossmatch.dataset_conversion.splits import assign_roles, read_splits
from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.evaluation.evaluate import cases_with_nominal_spacing, read_conversion_record
from nnunetv2_crossmatch.evaluation.label_schemes import read_label_schemes
from nnunetv2_crossmatch.evaluation.published import comparison_caveats, count_labeled_patients
from nnunetv2_crossmatch.evaluation.segmentations import find_reader, read_label_scheme
from nnunetv2_crossmatch.prediction.pseudo_labeled import _begun
from nnunetv2_crossmatch.prediction.second_training import read_fingerprint
from nnunetv2_crossmatch.training.lock import _check_other_machine, _has_ended, _locked_error, _read_holder
from nnunetv2_crossmatch.training.named import trainer_class
from nnunetv2_crossmatch.training.record import RunRecord, check_same_inputs, read_record
from nnunetv2_crossmatch.training.requirements import check_splits
from nnunetv2_crossmatch.training.start_from import origin_of

NAME = "Dataset001_A"
NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESAMPLING = {
    f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
}  # fmt: skip
PLANS: dict[str, Any] = {
    "dataset_name": NAME,
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
    "original_median_shape_after_transp": [8, 16, 16],
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": float("nan")}},
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [16, 16],
            "median_image_size_in_voxels": [16.0, 16.0],
            "spacing": [1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            **RESAMPLING,
            **{f"{name}_kwargs": {"order": 1} for name in RESAMPLING},
            "batch_dice": True,
            "architecture": {
                "network_class_name": NETWORK,
                "arch_kwargs": {
                    "n_stages": 2,
                    "features_per_stage": [2, 2],
                    "conv_op": "torch.nn.modules.conv.Conv2d",
                    "kernel_sizes": [[3, 3], [3, 3]],
                    "strides": [[1, 1], [2, 2]],
                    "n_conv_per_stage": [1, 1],
                    "n_conv_per_stage_decoder": [1],
                    "conv_bias": True,
                    "norm_op": None,
                    "nonlin": "torch.nn.ReLU",
                },
                "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
            },
        },
        "2d_large": {"inherits_from": "2d", "batch_size": 4},
    },
}
DATASET: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "heart": [1, 2], "wall": 2},
    "regions_class_order": [1, 2],
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
NUMBERS = [3, 5, 1, 1, 1]
MANIFEST = {
    "format": 1,
    "package_version": "0.1",
    "plans_hash": "abc",
    "made_with": "x",
    "ended": True,
    "asked_for": ["a"],
    "cases": {
        "a": {
            "files": {ending: [3, 5] for ending in (".pkl", ".b2nd", "_seg.b2nd")},
            "sources": {"a_0000.nii.gz": NUMBERS},
        }
    },
}
RECORD = {
    "seed": 1,
    "versions": {"torch": "2"},
    "processes": 1,
    "made_of": {"settings": {"epochs": 2}, "images": {"a": [1]}, "unlabeled": {}},
}
CONVERSION = {
    "dataset": NAME,
    "command": "nnUNetv2_crossmatch_convert_LA -i x",
    "caveats": ["c"],
    "missing": [],
    "cases": {"a": {"role": "labeled", "patient": "p", "spacing_is_nominal": True, "notes": []}},
}
ONE = {"dice": 0.5, "prediction_voxels": 3, "reference_voxels": 4, "empty": None}
SCORES = {
    "cases": {"a": {"heart": ONE}},
    "summary": {"heart": {"dice": {"mean": 0.5, "sd": None}}},
    "empty_masks": {"heart": {"prediction": 0, "reference": 0}},
}
PREDICTED = {"model": "m", "checkpoints": {"fold_0/checkpoint_final.pth": 4}, "confidence": {"a": 0.5}}
HOLDER = {"host": "elsewhere", "pid": 1, "since": "now", "id": "x"}
RUN = Run("semi_supervised", "", 0, "nnUNetTrainerCrossMatch", 10, 1.0, "")
REQUEST = Request(
    "la", 4, ("nnUNetTrainerCrossMatch",), (0,), None, 10, "data", ("upper_bound",), "val", "2d", "plain", None, True,
    None, None, False, (0.1, 0.2), "cpu",
)  # fmt: skip
TIMES = {"seconds_per_step": {"x": 0.5}, "spread": {"x": 0.1}, "prediction": 1.0, "threads": None}


@dataclass(frozen=True)
class Target:
    """A file below the test's folder, its valid content, and the code that reads and uses it."""

    file: str
    content: Any
    use: Callable[[Path], object]


def use_manifest(file: Path) -> None:
    manifest = read_manifest(file, "fix")
    Manifest(manifest.plans_hash, "", manifest.cases, manifest.asked_for).missing()
    find_damaged_cases(file.parent, manifest)
    for record in manifest.cases.values():
        sources_changed(record, [file])


def use_record(file: Path) -> None:
    record = read_record(file.parent)
    if record is not None:
        defaults = {"epochs": 1} | record.inputs.get("settings", {})
        check_same_inputs(file.parent, record, RunRecord(record.seed, {}, {**record.inputs, "settings": defaults}))


def use_conversion(file: Path) -> None:
    cases_with_nominal_spacing(file)
    record = read_conversion_record(file)
    count_labeled_patients(record)
    scores = SimpleNamespace(cases=["a", "b"], literature=True)
    list(comparison_caveats("LA", record, scores))


def use_splits(file: Path) -> None:
    roles = read_splits(file, 1, str)
    assign_roles({name: name for name in "abcd"}, roles, [], False, file.parent)


def use_scheme(file: Path) -> None:
    for labels in read_label_schemes(file.parent / "labelsTs", [file.parent / "predictions"]):
        labels.allowed()
        find_reader(labels.scheme, file)


def use_plans(file: Path) -> None:
    plans = check_plans_file(file)
    manager = _plans_manager(NAME, file.stem)
    for name in _select_configurations(manager, file.stem, []):
        unlabeled_folder_of(manager, name, file.stem)
    arguments = "2d", "all", copy.deepcopy(DATASET), torch.device("cpu")
    trainer_class("nnUNetTrainerCrossMatch")({**plans, "continue_training": False}, *arguments)


def use_network(file: Path) -> None:
    """As at the start of a training."""
    manager = PlansManager(check_plans_file(file))
    trainer = trainer_class("nnUNetTrainerCrossMatch")
    for name in manager.available_configurations[:1]:
        trainer.build_network_architecture(manager, manager.get_configuration(name), 1, 2, False)


def use_dataset(file: Path) -> None:
    check_dataset_file(file)
    _raw_cases(NAME)
    arguments = "2d", "all", json.loads(file.read_text()), torch.device("cpu")
    trainer_class("nnUNetTrainerCrossMatch")({**copy.deepcopy(PLANS), "continue_training": False}, *arguments)


def use_check(file: Path) -> None:
    """The command reports what is wrong and goes on."""
    found = list(check_dataset(NAME, [], "nnUNetPlans"))
    if not file.read_bytes().strip().startswith(b"{"):
        assert any(result.state == WRONG for result in found)


def use_holder(file: Path) -> None:
    holder = _read_holder(file)
    _has_ended(holder)
    _locked_error(file.parent, holder)
    _check_other_machine(file.parent, file)


def use_scores(file: Path) -> None:
    results.foreground_means(file)
    results.empty_predictions(file)
    results.amounts(file)


PREPROCESSED = f"preprocessed/{NAME}"
TARGETS = {
    "manifest": Target("2d_unlabeled.json", MANIFEST, use_manifest),
    "record of a run": Target("crossmatch_run.json", RECORD, use_record),
    "origin of a run": Target(
        "crossmatch_started_from.json", {"crc32": 1, "epochs": 2}, lambda file: origin_of(file.parent)
    ),
    "holder": Target(".running.json", HOLDER, use_holder),
    "conversion record": Target("conversion.json", CONVERSION, use_conversion),
    "splits": Target(
        "splits.json", {"train": ["a", "b"], "val": ["c"], "test": ["d"], "labeled": {"1": ["a"]}}, use_splits
    ),
    "split lists of a folder": Target(
        "splits.json",
        {"labeled": ["a"], "unlabeled": ["b"], "test": ["d"]},
        lambda file: folder_data.read_lists(file, 1),
    ),
    "folds": Target(
        "splits_final.json", [{"train": ["a"], "val": ["b"]}], lambda file: check_splits(file, ["a", "b"], 0)
    ),
    "label scheme": Target("dataset.json", DATASET, use_scheme),
    "plans": Target(f"{PREPROCESSED}/nnUNetPlans.json", PLANS, use_plans),
    "network": Target("plans.json", PLANS, use_network),
    "dataset": Target(f"{PREPROCESSED}/dataset.json", DATASET, use_dataset),
    "check of plans": Target(f"{PREPROCESSED}/nnUNetPlans.json", PLANS, use_check),
    "check of dataset": Target(f"{PREPROCESSED}/dataset.json", DATASET, use_check),
    "sources of labels": Target("sources.json", {"a": [1, 2]}, lambda file: read_sources(file.parent)),
    "predicted cases": Target(
        "work/predicted.json",
        PREDICTED,
        lambda file: _begun(file.parent, {name: PREDICTED[name] for name in ("model", "checkpoints")}),
    ),
    "scores": Target("scores.json", SCORES, use_scores),
    "request": Target("protocol.json", json.loads(json.dumps(asdict(REQUEST))), read_request),
    "runs": Target("runs.json", [asdict(RUN)], read_runs),
    "step times": Target(
        "step_times.json", TIMES, lambda file: timing.read_times(file, SimpleNamespace(device="cuda"), ["x"], True)
    ),
    "description of a folder": Target("dataset.json", DATASET, folder_data._description),
    "fingerprint": Target(
        "dataset_fingerprint.json", {"spacings": [[1, 1, 1]]}, lambda file: prepare.read_fingerprint(file.parent)
    ),
}
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, -(10**5), 1.5, 1e300, float("nan"), float("inf"), "", "x", "../x", "a\0b", "\ud800",
    "é" * 5000, "a\nb", "\x1b[2J", [], [[]], [None], ["x", 1], [1, "x"], {}, {"": {}}, {"x": [{}]}, [-1, 0, 0],
)  # fmt: skip
WHOLE = {
    "empty": b"",
    "blanks": b" \n",
    "cut off": b'{"a": [1, ',
    "a list": b"[]",
    "text": b'"x"',
    "null": b"null",
    "a number": b"1",
    "nested": b"[" * 100_000,
    "nested and closed": b'{"labels":' * 50_000 + b"1" + b"}" * 50_000,
    "not UTF-8": b'{"labels": "\xff"}',
    "UTF-16": '{"labels": 1}'.encode("utf-16"),
    "a byte order mark": "\ufeff{}".encode(),
    "a key twice": b'{"labels": {}, "labels": {}}',
    "NaN": b'{"seed": NaN}',
    "Infinity": b'{"seed": 1e999}',
    "a long number": b'{"seed": ' + b"9" * 5000 + b"}",
    "half a character": b'{"dataset_name": "\\ud800"}',
    "zeros": bytes(100),
}


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Keys of all entries inside ``value``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*place, key)
        yield from places(part, (*place, key))


def changed(content: Any, place: tuple, change: Callable[[Any, Any], None]) -> Any:
    """A copy of ``content`` after ``change(holder, key)`` of the entry at ``place``, if that is still there."""
    result = copy.deepcopy(content)
    holder = result
    for key in place[:-1]:
        try:
            holder = holder[key]
        except (LookupError, TypeError):
            return result
    if isinstance(holder, dict | list) and place[-1] in (holder if isinstance(holder, dict) else range(len(holder))):
        change(holder, place[-1])
    return result


def alterations(content: Any) -> Iterator[bytes]:
    """``content`` without one entry, with one of another value, with one key in a larger place."""
    for place in places(content):
        yield json.dumps(changed(content, place, lambda holder, key: holder.pop(key))).encode()
        for value in VALUES:
            replaced = changed(content, place, lambda holder, key, value=value: holder.__setitem__(key, value))
            yield json.dumps(replaced).encode()


def twice_altered(content: Any, draw: random.Random) -> bytes:
    """``content`` after two changes."""
    for _ in range(2):
        place, value = draw.choice(list(places(content)) or [("x",)]), draw.choice(VALUES)
        if draw.random() < 0.3:
            content = changed(content, place, lambda holder, key: holder.pop(key))
        else:
            content = changed(content, place, lambda holder, key, value=value: holder.__setitem__(key, value))
    return json.dumps(content).encode()


def prepared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders with a valid file of each kind that others need."""
    for kind in ("raw", "preprocessed", "results"):
        (root / kind / NAME).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{kind}", str(root / kind))
    (root / "raw" / NAME / "imagesUn").mkdir()
    (root / "raw" / NAME / "imagesUn" / "a_0000.nii.gz").touch()
    (root / PREPROCESSED / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    (root / PREPROCESSED / "dataset.json").write_text(json.dumps(DATASET))
    (root / "work").mkdir()
    (root / "predictions").mkdir()


def fault_of(root: Path, target: Target, content: bytes) -> str:
    """What is wrong with the answer to ``content``; empty if it is used or refused as promised."""
    file = root / target.file
    file.write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    try:
        target.use(file)
    except InputError as error:
        after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
        return "; ".join(filter(None, [*map(_fault_of_problem, error.problems), "written" * (before != after)]))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _fault_of_problem(problem: Problem) -> str:
    return "" if str(problem).isprintable() else f"not one line: {str(problem)!r}"


@pytest.mark.parametrize("name", TARGETS)
def test_an_altered_json_file_is_used_or_refused_in_one_line(name: str, tmp_path: Path, monkeypatch) -> None:
    target, draw = TARGETS[name], random.Random(name)
    prepared(tmp_path, monkeypatch)
    assert fault_of(tmp_path, target, json.dumps(target.content).encode()) == ""
    target.use(tmp_path / target.file)
    once = list(alterations(target.content))
    contents = [*WHOLE.values(), *draw.sample(once, min(25, len(once)))]
    contents += [twice_altered(target.content, draw) for _ in range(8)]
    faults = {content[:300]: fault for content in contents if (fault := fault_of(tmp_path, target, content))}
    assert faults == {}


def test_files_into_which_nnunet_writes_what_is_no_number_are_read(tmp_path: Path, monkeypatch) -> None:
    prepared(tmp_path, monkeypatch)
    kinds: dict[str, Callable[[Path], Any]] = {
        f"{PREPROCESSED}/nnUNetPlans.json": check_plans_file,
        f"{PREPROCESSED}/dataset.json": check_dataset_file,
        "dataset.json": lambda file: read_label_scheme(file).content,
        "crossmatch_run.json": lambda file: read_record(file.parent).inputs,
        "dataset_fingerprint.json": lambda file: read_fingerprint(file.parent),
    }
    contents = dict(zip(kinds, (PLANS, DATASET, DATASET, RECORD, {"spacings": []}), strict=True))
    for name, read in kinds.items():
        content = copy.deepcopy(contents[name])
        content.get("made_of", content)["more"] = float("nan")
        (tmp_path / name).write_text(json.dumps(content))
        assert math.isnan(read(tmp_path / name)["more"]), name
    check_dataset_name(tmp_path / PREPROCESSED / "nnUNetPlans.json")


@pytest.mark.parametrize("name", ["per_channel", "by_modality"])  # the second in plans of earlier versions
def test_intensities_that_are_no_object_by_channel_are_refused(name: str) -> None:
    plans = {key: value for key, value in PLANS.items() if not key.startswith("foreground")}
    with pytest.raises(InputError, match=r"unusable plans in plans\.json: 0: 1\.5 instead of an object"):
        check_plans_form({**plans, f"foreground_intensity_properties_{name}": {"0": 1.5}}, "plans.json")


def test_a_fold_that_names_cases_which_are_not_there_is_refused(tmp_path: Path) -> None:
    """Other folds may; the command check asks for all of them."""
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["gone"]}]))
    check_splits(file, ["a", "b"], 0)
    for fold in (1, None):
        with pytest.raises(InputError, match=r"folds of other cases in .*: 1 cases are not preprocessed, .* is gone"):
            check_splits(file, ["a", "b"], fold)


def test_a_training_of_a_configuration_that_the_plans_lack_names_those_that_they_have() -> None:
    arguments = "3d", "all", copy.deepcopy(DATASET), torch.device("cpu")
    with pytest.raises(InputError, match=r"configuration unknown in plans\.json: 3d\. Fix: choose from 2d, 2d_large"):
        trainer_class("nnUNetTrainerCrossMatch")(copy.deepcopy(PLANS), *arguments)
