from __future__ import annotations

from pathlib import Path

import pytest
from fake_data import write_splits_file

from nnunetv2_crossmatch.dataset_conversion import Dataset501_LA, Dataset502_ACDC
from nnunetv2_crossmatch.dataset_conversion.splits import read_splits
from nnunetv2_crossmatch.errors import InputError


@pytest.mark.parametrize(("number", "unlabeled"), [(4, 76), (8, 72), (16, 64), (5, 75)])
def test_la_training_cases_are_labeled_or_unlabeled(number: int, unlabeled: int) -> None:
    roles = read_splits(Dataset501_LA.DATASET.shipped_splits, number, str)
    assert [len(roles[role]) for role in ("labeled", "unlabeled", "val", "test")] == [number, unlabeled, 0, 20]


@pytest.mark.parametrize(
    ("number", "first"), [(1, "patient099"), (3, "patient038"), (7, "patient021"), (2, "patient003")]
)
def test_acdc_published_subset_or_first_patients(number: int, first: str) -> None:
    roles = read_splits(Dataset502_ACDC.DATASET.shipped_splits, number, Dataset502_ACDC.patient_of)
    assert roles["labeled"][0] == first
    assert [len(roles[role]) for role in ("labeled", "unlabeled", "val", "test")] == [number, 70 - number, 10, 20]


def test_first_n_counts_patients_where_frames_are_listed(tmp_path: Path) -> None:
    frames = [f"patient{patient:03d}_frame{frame:02d}" for patient in (1, 2, 3) for frame in (1, 12)]
    roles = read_splits(write_splits_file(tmp_path / "s.json", train=frames), 2, Dataset502_ACDC.patient_of)
    assert (roles["labeled"], roles["unlabeled"]) == (frames[:4], frames[4:])


def test_plain_labeled_list_needs_no_number(tmp_path: Path) -> None:
    roles = read_splits(write_splits_file(tmp_path / "s.json", labeled=["a"], unlabeled=["b", "c"]), None, str)
    assert (roles["labeled"], roles["unlabeled"]) == (["a"], ["b", "c"])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"trian": []}', "unknown keys trian"),
        ('{"train": [1]}', '"train" is not a list of names'),
        ('{"train": ["a"], "labeled": {"2": 3}}', '"labeled 2" is not a list of names'),
        ('{"train": ["a"]}', "1 are listed, 2 asked for"),
        ('{"train": ["a", "b"], "labeled": ["a"]}', "1 are listed, 2 asked for"),
        ('{"train": ["a", "b"], "labeled": ["a", "c"]}', 'cases not in "train"'),
    ],
)
def test_malformed_file_is_named_with_the_reason(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_splits(file, 2, str)
    assert part in str(caught.value)
    assert "mine.json" in str(caught.value)


@pytest.mark.parametrize(("number", "part"), [(0, "--labeled 0"), (None, "give --labeled N")])
def test_number_must_be_given_and_positive(tmp_path: Path, number: int | None, part: str) -> None:
    with pytest.raises(InputError, match=part):
        read_splits(write_splits_file(tmp_path / "s.json", train=["a"]), number, str)


def test_absent_list_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list file unreadable in .*absent\.list"):
        read_splits(write_splits_file(tmp_path / "s.json", train="absent.list"), 1, str)


def test_absent_splits_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: No such file"):
        read_splits(tmp_path / "absent.json", 1, str)
