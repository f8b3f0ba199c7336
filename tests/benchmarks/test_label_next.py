"""The split files that ask whether labeling the cases of a review pays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import label_next

LISTS = {"labeled_2": ["a", "c"], "labeled": ["a", "c", "b"], "unlabeled": ["d", "e", "f", "g"], "validation": ["v"]}
DEVIATIONS = {"b": 0.1, "d": -3.0, "e": 2.0, "f": None, "g": 1.0}
REVIEW = {
    "label_next": [{"case": "g", "why": "it disagrees"}, {"case": "b", "why": "it is far"}],
    "cases": {case: {"classes": {"blob": {"volume_z": z}}} for case, z in DEVIATIONS.items()},
}


@pytest.fixture
def written(tmp_path, monkeypatch) -> dict[str, dict[str, list[str]]]:
    (tmp_path / "review.json").write_text(json.dumps(REVIEW))
    (tmp_path / "splits.json").write_text(json.dumps(LISTS))
    words = [tmp_path / "review.json", "--splits", tmp_path / "splits.json", "--labeled", "2", "-o", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["label_next.py", *map(str, words)])
    label_next.main()
    return {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}


def test_every_choice_labels_as_many_more_cases(written):
    assert set(written) == {"review", "volume", "random0", "random1", "random2"}
    assert {len(lists["labeled"]) for lists in written.values()} == {4}


def test_the_cases_of_the_review_become_labeled(written):
    assert written["review"] == {"labeled": ["a", "c", "g", "b"], "unlabeled": ["d", "e", "f"], "validation": ["v"]}


def test_outliers_are_the_largest_deviations_either_way(written):
    assert written["volume"]["labeled"] == ["a", "c", "d", "e"]


def test_no_case_is_lost_and_none_is_in_two_lists(written):
    for lists in written.values():
        assert sorted([*lists["labeled"], *lists["unlabeled"]]) == list("abcdefg")


def test_random_draws_differ_and_come_back(written):
    drawn = [written[f"random{n}"]["labeled"][2:] for n in range(3)]
    assert len({tuple(one) for one in drawn}) > 1
    assert drawn == [label_next.choices(REVIEW)[f"random{n}"] for n in range(3)]
