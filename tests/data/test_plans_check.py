"""``plans_check``: plans and dataset.json name nothing but networks, layers and parts of nnU-Net."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_crossmatch.data.plans_check import (
    TRUSTED_VARIABLE,
    check_dataset_file,
    check_plans,
    check_plans_file,
    label_manager_of,
)
from nnunetv2_crossmatch.errors import InputError

PLANS = {
    "dataset_name": "Dataset001_A",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "normalization_schemes": ["ZScoreNormalization"],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "conv_op": "torch.nn.modules.conv.Conv2d",
                    "dropout_op": None,
                    "nonlin": "torch.nn.ReLU",
                },
                "_kw_requires_import": ["conv_op", "dropout_op", "nonlin"],
            },
        },
        "2d_large": {"inherits_from": "2d"},
    },
}


def changed_plans(entry: str, value: object) -> dict:
    """``PLANS`` with one other entry, wherever it is."""
    plans = copy.deepcopy(PLANS)
    configuration = plans["configurations"]["2d"]
    architecture = configuration["architecture"]
    (holder,) = (part for part in (plans, configuration, architecture, architecture["arch_kwargs"]) if entry in part)
    holder[entry] = value
    return plans


@pytest.fixture
def foreign_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``foreign_net`` on the path; the returned file is written when it is imported."""
    imported = tmp_path / "imported"
    (tmp_path / "foreign_net.py").write_text(f"open({str(imported)!r}, 'w').close()\nNet = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_net", raising=False)
    return imported


def test_nnunet_imports_and_calls_whatever_the_plans_name(foreign_module: Path) -> None:
    """The reason for this check."""
    assert get_network_from_plans("foreign_net.Net", {"cmd": 1}, [], 1, 2) == {
        "cmd": 1, "input_channels": 1, "num_classes": 2
    }  # fmt: skip
    assert foreign_module.exists()


def test_plans_of_nnunet_are_accepted() -> None:
    check_plans(PLANS, "plans.json")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("network_class_name", "foreign_net.Net"),
        ("network_class_name", "dynamic_network_architectures.architectures.unet.nn.Conv2d"),
        ("network_class_name", ["foreign_net.Net"]),
        ("conv_op", "foreign_net.Net"),
        ("conv_op", "torch.nn.modules.module.functools.partial"),
        ("conv_op", "torch.hub.load"),
        ("resampling_fn_data", "deepcopy"),
        ("preprocessor_name", "Pool"),
        ("normalization_schemes", ["ZScoreNormalization", "foreign_net.Net"]),
        ("normalization_schemes", [5]),
        ("preprocessor_name", {"DefaultPreprocessor": 1}),
        ("image_reader_writer", "os"),
        ("experiment_planner_used", "shutil"),
        ("label_manager", "torch"),
        ("data_identifier", "../../elsewhere"),
        ("plans_name", "/tmp/elsewhere"),
        ("dataset_name", ".."),
        ("dataset_name", "a\\b"),
    ],
)
def test_a_foreign_name_is_refused_without_importing_it(foreign_module: Path, entry: str, value: object) -> None:
    with pytest.raises(InputError, match=entry):
        check_plans(changed_plans(entry, value), "plans.json")
    assert not foreign_module.exists()


@pytest.mark.parametrize(
    "name", ["Dataset701_Knee-MR v1.2", "Dataset702_Leber (CT)", "Dataset703_Aïe", "Dataset704_a..b"]
)
def test_every_name_of_a_data_set_that_is_no_path_is_accepted(name: str) -> None:
    check_plans(changed_plans("dataset_name", name), "plans.json")


@pytest.mark.parametrize("entry", ["preprocessor_name", "experiment_planner_used", "label_manager"])
def test_an_own_part_of_nnunet_is_accepted_if_it_is_trusted(entry: str) -> None:
    plans = changed_plans(entry, "MyOwnPart")
    with pytest.raises(InputError, match=rf"{entry} is 'MyOwnPart'.*NNUNETV2_CROSSMATCH_TRUSTED_CLASSES"):
        check_plans(plans, "plans.json")
    check_plans(plans, "plans.json", ["MyOwnPart"])


def test_an_own_class_is_accepted_if_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = changed_plans("network_class_name", "my_package.Net")
    check_plans(plans, "plans.json", ["my_package.Net"])
    monkeypatch.setenv(TRUSTED_VARIABLE, "my_package.Net,other.Net")
    check_plans(plans, "plans.json")


def test_all_foreign_names_of_a_file_are_listed(tmp_path: Path) -> None:
    plans = changed_plans("network_class_name", "a.B")
    plans["configurations"]["3d"] = changed_plans("conv_op", "c.D")["configurations"]["2d"]
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InputError) as caught:
        check_plans_file(tmp_path / "plans.json")
    assert [problem.where for problem in caught.value.problems] == [tmp_path / "plans.json"] * 2


def test_a_form_that_cannot_be_searched_for_names_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError) as caught:
        check_plans(PLANS | {"configurations": [1]}, "plans.json")
    (problem,) = caught.value.problems
    assert (problem.what, problem.where) == ("unusable plans", "plans.json")
    assert problem.detail == "'list' object has no attribute 'values'"


def test_a_foreign_reader_in_dataset_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"overwrite_image_reader_writer": "os"}))
    with pytest.raises(InputError, match="overwrite_image_reader_writer"):
        check_dataset_file(tmp_path / "dataset.json")


@pytest.mark.parametrize("text", ["", "what\nand where"])
def test_labels_that_nnunet_does_not_understand_are_told_with_its_first_words(text):
    def refuse(_: object) -> None:
        raise AssertionError(*[text] * bool(text))

    detail = text.split("\n")[0] or "AssertionError"
    with pytest.raises(
        InputError, match=rf"labels not understood in dataset.json: {detail}. Fix: write numbers by name"
    ):
        label_manager_of(SimpleNamespace(get_label_manager=refuse), {})
