"""Data sets in plain folders: split lists, conversion, and the tasks that use them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread, imsave

from benchmarks.protocol import __main__ as protocol
from benchmarks.protocol import options
from benchmarks.protocol import request as requests
from benchmarks.protocol.folder_data import convert, described, read_folder, read_lists, roles_of
from benchmarks.protocol.prepare import halvings
from benchmarks.protocol.tasks import TASKS
from nnunetv2_crossmatch.errors import InputError

LISTS = {"labeled": ["a", "b"], "unlabeled": ["c"], "validation": ["d"], "labeled_1": ["a"]}


def folder_data(folder: Path, highest: int = 1, labels: str = "abcd", parts: tuple[str, str] = ("", "")) -> Path:
    """Four images of 8 x 8 pixels, labels of the cases in ``labels``, and the lists."""
    for kind, part in zip(("images", "labels"), parts, strict=True):
        (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
    pattern = np.tile(np.array([0, highest], np.uint8), (8, 4))
    for case in "abcd":
        imsave(folder / f"images{parts[0]}" / f"{case}_0000.png", pattern, check_contrast=False)
    for case in labels:
        imsave(folder / f"labels{parts[1]}" / f"{case}.png", pattern, check_contrast=False)
    (folder / "splits.json").write_text(json.dumps(LISTS))
    return folder


def asked(*given: str) -> tuple[requests.Request, argparse.Namespace]:
    return options.read_request(options.parser(), given)


def lists_file(folder: Path, **lists: object) -> Path:
    file = folder / "lists.json"
    file.write_text(json.dumps({**LISTS, **lists}))
    return file


# Lists


def test_labeled_cases_beyond_the_number_become_unlabeled(tmp_path):
    lists = read_lists(lists_file(tmp_path), 1)
    assert lists == {"labeled": ["a"], "unlabeled": ["b", "c"], "val": ["d"], "test": []}


def test_a_list_for_the_number_goes_before_the_first_ones(tmp_path):
    assert read_lists(lists_file(tmp_path, labeled_1=["b"]), 1)["labeled"] == ["b"]


def test_the_converters_form_is_read_too(tmp_path):
    file = tmp_path / "lists.json"
    file.write_text(json.dumps({"train": ["a", "b", "c"], "val": ["d"], "labeled": {"1": ["b"]}}))
    assert read_lists(file, 1) == {"labeled": ["b"], "unlabeled": ["a", "c"], "val": ["d"], "test": []}


@pytest.mark.parametrize(
    ("changed", "number", "message"),
    [
        ({"labeled": ["a", "b", "b"]}, 1, r'names repeated in "labeled" in .*lists.json: b\. Fix'),
        ({"validation": ["d", "c"]}, 1, r'lists "unlabeled" and "val" overlap in .*: c\. Fix'),
        ({}, 3, r"other number of labeled cases in .*: 2 of 2 are listed for labeled_3"),
        ({"labeled_1": ["c"]}, 1, r"other number of labeled cases"),
        ({"unlabelled": ["e"]}, 1, r"splits file of another form in .*: unknown keys unlabelled\."),
        ({"unlabeled": "c"}, 1, r'splits file of another form in .*: "unlabeled" is not a list of names'),
    ],
)
def test_faulty_lists_are_refused_in_one_line(tmp_path, changed, number, message):
    with pytest.raises(InputError, match=message) as caught:
        read_lists(lists_file(tmp_path, **changed), number)
    assert len(caught.value.problems) == 1


def test_data_without_unlabeled_cases_are_refused(tmp_path):
    file = lists_file(tmp_path, unlabeled=[])
    given = f"{folder_data(tmp_path / 'Half')} --labeled 2 --steps 2 --folder out --splits {file}"
    with pytest.raises(InputError, match=r"no unlabeled case in .*lists.json"):
        requests.split_lists(asked(*given.split())[0])


# Folders


def test_a_listed_case_that_the_folder_lacks_is_refused(tmp_path):
    data = read_folder(folder_data(tmp_path))
    lists = read_lists(lists_file(tmp_path, unlabeled=["c", "e"]), 1)
    with pytest.raises(InputError, match=r"1 listed cases missing in .*: e\."):
        roles_of(data, lists, allow_missing=False)
    assert roles_of(data, lists, allow_missing=True)[1] == ["e"]


def test_a_case_without_the_label_that_its_role_needs_is_refused(tmp_path):
    data = read_folder(folder_data(tmp_path, labels="ad"))
    lists = read_lists(tmp_path / "splits.json", 1)
    roles_of(data, lists, False)
    with pytest.raises(InputError, match=r"label missing in .*: b, c\."):
        roles_of(data, requests.all_labeled(lists), False)


def test_label_values_that_are_not_consecutive_are_refused(tmp_path):
    data = read_folder(folder_data(tmp_path, highest=255))
    with pytest.raises(InputError, match=r"labels not 0, 1, 2, ... in .*: labels have the values 0, 255\."):
        described(data, dict.fromkeys("abcd", "labeled"))


def test_a_class_in_unlabeled_cases_only_must_be_named(tmp_path):
    """Their labels are no source for the classes, and the upper bound has the same."""
    data = folder_data(tmp_path / "Half")
    imsave(data / "labels" / "c.png", np.tile(np.array([0, 1, 2, 2], np.uint8), (8, 2)), check_contrast=False)
    given = f"{data} --labeled 1 --steps 2 --folder out"
    request = asked(*given.split())[0]
    with pytest.raises(InputError, match=r"labels differ between cases in .*: 2 labels .* 3 in all"):
        requests.check_data(request, requests.split_lists(request))
    named = asked(*given.split(), "--classes", "cell", "nucleus")[0]
    requests.check_data(named, requests.split_lists(named))


def test_a_case_in_two_image_folders_is_refused(tmp_path):
    folder_data(tmp_path, parts=("Tr", "Tr"))
    folder_data(tmp_path, parts=("Un", "Tr"))
    with pytest.raises(InputError, match=r"case twice in .*: a, b, c, d in imagesUn and in another folder"):
        read_folder(tmp_path)


def test_labels_of_unlabeled_cases_are_not_looked_at(tmp_path):
    data = read_folder(folder_data(tmp_path))
    (tmp_path / "labels" / "c.png").write_bytes(b"no image")
    roles, _ = roles_of(data, read_lists(tmp_path / "splits.json", 1), False)
    assert described(data, roles)["labels"] == {"background": 0, "class 1": 1}


def test_a_folder_becomes_a_raw_data_set(tmp_path):
    data = read_folder(folder_data(tmp_path / "data"))
    roles, missing = roles_of(data, read_lists(tmp_path / "data" / "splits.json", 1), False)
    raw = tmp_path / "Dataset503_Half"
    convert(data, roles, raw, {"missing": missing}, classes=["nucleus"], channels=["microscopy"])
    files = {str(file.relative_to(raw)) for file in raw.rglob("*.png")}
    labeled = {"imagesTr/a_0000.png", "labelsTr/a.png", "imagesVal/d_0000.png", "labelsVal/d.png"}
    assert files == {*labeled, "imagesUn/b_0000.png", "imagesUn/c_0000.png"}
    assert imread(raw / "labelsTr" / "a.png").max() == 1
    assert json.loads((raw / "dataset.json").read_text()) == {
        "channel_names": {"0": "microscopy"}, "labels": {"background": 0, "nucleus": 1}, "numTraining": 1,
        "file_ending": ".png",
    }  # fmt: skip


def test_nnunets_raw_layout_keeps_its_description(tmp_path):
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    data = read_folder(folder_data(tmp_path, parts=("Tr", "Tr")))
    assert described(data, {"a": "labeled"}) == {**description, "numTraining": 1}


def test_a_folder_is_checked_before_anything_is_written(tmp_path):
    given = f"{folder_data(tmp_path / 'Half', labels='ad')} --labeled 1 --steps 2 --folder {tmp_path}/out"
    with pytest.raises(InputError, match="label missing"):
        protocol.run_protocol(*asked(*given.split()))
    assert not (tmp_path / "out").exists()


# Tasks


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_a_whole_request(tmp_path, task):
    request = asked(task, "--data", str(tmp_path), "--folder", "out")[0]
    assert request.data == str(tmp_path / TASKS[task]["place"])
    assert (request.labeled, request.small) == (int(task[-1]), 8)
    assert request.steps == (1200 if task == "hippocampus2" else 3000)


def test_options_go_before_those_of_a_task(tmp_path):
    given = f"hippocampus2 --data {tmp_path} --folder out --labeled 4 --minutes 3"
    request = asked(*given.split())[0]
    assert (request.labeled, request.minutes, request.steps) == (4, 3.0, None)


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((96, 96), [[1, 1], [2, 2], [2, 2], [2, 2]]),
        ((32, 48, 32), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ((8, 32, 32), [[1, 1, 1], [2, 2, 2], [1, 2, 2], [1, 2, 2]]),
        ((8, 12), [[1, 1], [2, 2]]),
    ],
)
def test_axes_are_halved_while_they_are_long(patch, strides):
    assert list(halvings(patch)) == strides
