from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnunetv2_crossmatch.evaluation.published import compare_with_published, published_rows
from nnunetv2_crossmatch.evaluation.scores import Scores

MEASURES = ("dice", "jaccard", "hd95_voxel", "asd_voxel")


def make_scores(prediction_voxels: int = 5) -> Scores:
    values = np.array([[[0.9, 0.8, 3.0, 1.0]], [[0.8, 0.7, 5.0, 2.0]]])
    return Scores(("a", "b"), ("atrium",), MEASURES, values, np.array([[[prediction_voxels, 5]], [[5, 5]]]))


def make_conversion_record(data_set: str = "LA", labeled: int = 8, **roles: str) -> dict[str, Any]:
    cases = {f"case{i}": {"role": "labeled", "patient": f"case{i}"} for i in range(labeled)}
    cases |= {name: {"role": role, "patient": name} for name, role in roles.items()}
    return {"command": f"nnUNetv2_crossmatch_convert_{data_set} -i x -d 501", "cases": cases}


@pytest.mark.parametrize(("data_set", "rows"), [("LA", 39), ("ACDC", 21)])
def test_all_rows_of_a_table_have_four_measures(data_set, rows):
    found = published_rows(data_set)
    assert [len(row.measures) for row in found] == [4] * rows


def test_the_main_result_of_the_paper_is_in_the_table():
    row = next(row for row in published_rows("LA") if row.method == "CrossMatch" and row.labeled == "8")
    assert row.measures == ("91.33", "84.11", "5.29", "1.53")


def test_rows_with_the_same_number_of_labels_are_compared():
    compared = compare_with_published(make_conversion_record(labeled=8, a="test", b="test"), {"mine": make_scores()})
    assert {row.labeled for row in compared.rows[:-1]} == {"8"}


def test_own_scores_have_the_units_of_the_published_table():
    compared = compare_with_published(make_conversion_record(), {"mine": make_scores()})
    assert next(row for row in compared.rows if row.is_own).measures == ("85.00", "75.00", "4.00", "1.50")


def test_rows_of_crossmatch_are_shown_for_an_unpublished_number_of_labels():
    compared = compare_with_published(make_conversion_record(labeled=5), {"mine": make_scores()})
    assert [row.labeled for row in compared.rows if row.method == "CrossMatch"] == ["4", "8", "16"]
    assert "no row for 5 labeled" in compared.caveats[0]


def test_scored_training_cases_are_a_caveat():
    compared = compare_with_published(make_conversion_record(a="unlabeled", b="test"), {"mine": make_scores()})
    assert any("1 of the scored cases belong to the training set" in caveat for caveat in compared.caveats)


def test_test_cases_are_not_counted_as_training_cases():
    compared = compare_with_published(make_conversion_record(a="test", b="test"), {"mine": make_scores()})
    assert not any("training set" in caveat for caveat in compared.caveats)


def test_empty_predictions_are_a_caveat():
    hints = [
        any(
            "--literature" in caveat
            for caveat in compare_with_published(make_conversion_record(), {"mine": make_scores(size)}).caveats
        )
        for size in (0, 5)
    ]
    assert hints == [True, False]


def test_another_data_set_has_no_published_numbers():
    assert compare_with_published(make_conversion_record(data_set="Spleen"), {"mine": make_scores()}) is None
