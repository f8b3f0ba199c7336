from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nnunetv2_crossmatch.evaluation.published import compare_with_published, published_rows
from nnunetv2_crossmatch.evaluation.scores import Scores

MEASURES = ("dice", "jaccard", "hd95_voxel", "asd_voxel")


def scores(prediction_voxels: int = 5) -> Scores:
    values = np.array([[[0.9, 0.8, 3.0, 1.0]], [[0.8, 0.7, 5.0, 2.0]]])
    return Scores(("a", "b"), ("atrium",), MEASURES, values, np.array([[[prediction_voxels, 5]], [[5, 5]]]))


def record(data_set: str = "LA", labeled: int = 8, **roles: str) -> dict[str, Any]:
    cases = {f"case{i}": {"role": "labeled", "patient": f"case{i}"} for i in range(labeled)}
    cases |= {name: {"role": role, "patient": name} for name, role in roles.items()}
    return {"command": f"nnUNetv2_crossmatch_convert_{data_set} -i x -d 501", "cases": cases}


@pytest.mark.parametrize(("data_set", "rows"), [("LA", 39), ("ACDC", 21)])
def test_all_rows_of_a_table_have_four_measures(data_set, rows):
    found = published_rows(data_set)
    assert [len(row.measures) for row in found] == [4] * rows


def test_the_papers_main_result_is_there():
    row = next(row for row in published_rows("LA") if row.method == "CrossMatch" and row.labeled == "8")
    assert row.measures == ("91.33", "84.11", "5.29", "1.53")


def test_rows_with_as_many_labels_are_compared():
    compared = compare_with_published(record(labeled=8, a="test", b="test"), {"mine": scores()})
    assert {row.labeled for row in compared.rows[:-1]} == {"8"}


def test_own_scores_stand_in_the_tables_units():
    compared = compare_with_published(record(), {"mine": scores()})
    assert next(row for row in compared.rows if row.is_own).measures == ("85.00", "75.00", "4.00", "1.50")


def test_without_rows_for_that_many_labels_those_of_crossmatch_are_shown():
    compared = compare_with_published(record(labeled=5), {"mine": scores()})
    assert [row.labeled for row in compared.rows if row.method == "CrossMatch"] == ["4", "8", "16"]
    assert "no row for 5 labeled" in compared.caveats[0]


def test_training_cases_among_the_scored_are_told():
    compared = compare_with_published(record(a="unlabeled", b="test"), {"mine": scores()})
    assert any("1 of the scored cases belong to the training set" in caveat for caveat in compared.caveats)


def test_test_cases_are_not_taken_for_training_cases():
    compared = compare_with_published(record(a="test", b="test"), {"mine": scores()})
    assert not any("training set" in caveat for caveat in compared.caveats)


def test_the_convention_for_empty_predictions_is_told_where_it_matters():
    hints = [
        any("--literature" in caveat for caveat in compare_with_published(record(), {"mine": scores(size)}).caveats)
        for size in (0, 5)
    ]
    assert hints == [True, False]


def test_another_data_set_has_no_published_numbers():
    assert compare_with_published(record(data_set="Spleen"), {"mine": scores()}) is None


def test_rows_ascend_by_dice_and_the_upper_bound_ends_them():
    rows = compare_with_published(record("ACDC", labeled=3), {"mine": scores()}).rows
    dice = [float(row.measures[0]) for row in rows[:-1]]
    assert dice == sorted(dice)
    assert [row.is_own for row in rows].index(True) == dice.index(85.0)
    assert (rows[-1].method, rows[-1].labeled) == ("U-Net supervised", "70")


def test_own_scores_without_any_value_come_first_as_dashes():
    undefined = Scores(("a",), ("x",), MEASURES, np.full((1, 1, 4), np.nan), np.zeros((1, 1, 2), int))
    row = compare_with_published(record(), {"mine": undefined}).rows[0]
    assert (row.method, row.labeled, row.measures) == ("mine", "8", ("-",) * 4)


def test_patients_are_counted_and_not_their_frames():
    frames = {f"p{i}_{frame}": {"role": "labeled", "patient": f"p{i}"} for i in range(7) for frame in (1, 2)}
    others = {"x": {"role": "unlabeled", "patient": "x"}}
    compared = compare_with_published({**record("ACDC"), "cases": {**frames, **others}}, {"mine": scores()})
    assert {row.labeled for row in compared.rows[:-1]} == {"7"}


def test_caveats_come_in_order_with_those_of_the_conversion():
    compared = compare_with_published({**record(a="test", b="labeled"), "caveats": ["cropped"]}, {"mine": scores()})
    role, training, protocol, conversion, distances, one_run = compared.caveats[-6:]
    assert role.endswith("Scored here, by role in the conversion: 1 test, 1 labeled.")
    assert training.startswith("1 of the scored cases")
    assert "whole scans" in protocol.replace("\n", " ")
    assert conversion == "From the conversion: cropped."
    assert distances.startswith("Distances are in voxels")
    assert one_run.startswith("Each published row is one run")


def test_the_hint_at_the_convention_is_not_told_to_those_who_use_it():
    compared = compare_with_published(record(), {"mine": replace(scores(0), literature=True)})
    assert not any("--literature" in caveat for caveat in compared.caveats)


def test_the_columns_are_in_the_tables_units():
    columns = compare_with_published(record(), {"mine": scores()}).columns
    assert columns == ("Dice %", "Jaccard %", "95HD voxel", "ASD voxel")
