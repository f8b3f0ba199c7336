"""The split files that ask whether labeling the cases of a review pays."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import label_next
from benchmarks.protocol.folder_data import read_lists
from nnunetv2_crossmatch.errors import InputError

LISTS = {"labeled_2": ["a", "c"], "labeled": ["a", "c", "b"], "unlabeled": ["d", "e", "f", "g"], "validation": ["v"]}
DEVIATIONS = {"b": 0.1, "d": -3.0, "e": 2.0, "f": None, "g": 1.0}
REVIEW = {
    "label_next": [{"case": "g", "why": "it disagrees"}, {"case": "b", "why": "it is far"}],
    "cases": {case: {"classes": {"blob": {"volume_z": z}}} for case, z in DEVIATIONS.items()},
}


def write(folder, monkeypatch, labeled: int) -> dict[str, dict[str, list[str]]]:
    (folder / "review.json").write_text(json.dumps(REVIEW))
    (folder / "splits.json").write_text(json.dumps(LISTS))
    words = [folder / "review.json", "--splits", folder / "splits.json", "--labeled", labeled, "-o", folder / "out"]
    monkeypatch.setattr(sys, "argv", ["label_next.py", *map(str, words)])
    label_next.main()
    return {file.stem: read_lists(file, labeled + 2) for file in (folder / "out").iterdir()}


@pytest.fixture
def written(tmp_path, monkeypatch) -> dict[str, dict[str, list[str]]]:
    """What the protocol reads from the files."""
    return write(tmp_path, monkeypatch, 2)


def test_every_choice_labels_as_many_more_cases(written):
    assert set(written) == {"review", "volume", "random0", "random1", "random2"}
    assert {len(lists["labeled"]) for lists in written.values()} == {4}


def test_the_cases_of_the_review_become_labeled(written):
    left = {"unlabeled": ["d", "e", "f"], "val": ["v"], "test": []}
    assert written["review"] == {"labeled": ["a", "c", "g", "b"], **left}


def test_outliers_are_the_largest_deviations_either_way(written):
    assert written["volume"]["labeled"] == ["a", "c", "d", "e"]


def test_no_case_is_lost_and_none_is_in_two_lists(written):
    for lists in written.values():
        assert sorted([*lists["labeled"], *lists["unlabeled"]]) == list("abcdefg")


def test_random_draws_differ_and_come_back(written):
    drawn = [written[f"random{n}"]["labeled"][2:] for n in range(3)]
    assert len({tuple(one) for one in drawn}) > 1
    assert drawn == [label_next.choices(REVIEW)[f"random{n}"] for n in range(3)]


def test_a_review_of_another_number_of_labels_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"reviewed case is not unlabeled in .*splits\.json: b\."):
        write(tmp_path, monkeypatch, 3)
    assert not (tmp_path / "out").exists()
