"""scores: statistics over cases and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunetv2_crossmatch.evaluation.scores import (
    Scores,
    bootstrap_interval,
    case_class_rows,
    compare_scores,
    paired_difference,
    select_scores,
    summarize,
    wilcoxon_p_value,
)

NAN = float("nan")


def make(values: list, voxels: list | None = None, classes: tuple[str, ...] = ("A", "B"), **more: object) -> Scores:
    array = np.array(values, dtype=float)[..., None]
    sizes = np.array(voxels) if voxels else np.ones((*array.shape[:2], 2), int)
    return Scores(tuple(f"case{i}" for i in range(len(array))), classes, ("dice",), array, sizes, **more)


def test_the_standard_deviation_is_that_of_a_sample() -> None:
    assert summarize(np.array([1.0, 2.0, 3.0])).std == 1


def test_undefined_values_are_counted_and_enter_no_mean() -> None:
    summary = summarize(np.array([1.0, NAN, 3.0]))
    assert (summary.defined, summary.undefined, summary.mean) == (2, 1, 2)


def test_one_case_has_a_mean_but_no_spread() -> None:
    summary = summarize(np.array([0.5]))
    assert summary.mean == 0.5
    assert np.isnan([summary.std, summary.low, summary.high]).all()


def test_no_defined_case_gives_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert math.isnan(summarize(np.array([NAN, NAN])).mean)
    assert not len(recwarn)


def test_the_interval_of_equal_values_is_that_value() -> None:
    assert bootstrap_interval(np.array([0.7, 0.7, 0.7])) == (0.7, 0.7)


def test_the_interval_is_the_same_in_every_run_and_holds_the_mean() -> None:
    values = np.random.default_rng(3).gamma(2, size=20)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert low < values.mean() < high


def test_the_interval_of_many_normal_values_is_close_to_the_t_interval() -> None:
    values = np.random.default_rng(4).normal(10, 2, 200)
    expected = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.03)


def test_the_mean_over_classes_is_taken_within_each_case() -> None:
    scores = make([[0.2, 0.4], [0.6, NAN], [NAN, NAN]])
    np.testing.assert_allclose(scores.per_case("foreground_mean", "dice"), [0.3, 0.6, NAN])


def test_a_single_class_has_no_mean_over_classes() -> None:
    assert make([[0.1], [0.2]], classes=("A",)).groups == ("A",)


def test_empty_masks_are_counted_by_which_one_is_empty() -> None:
    scores = make([[NAN], [0], [0], [1]], [[[0, 0]], [[0, 9]], [[9, 0]], [[9, 9]]], classes=("A",))
    assert scores.empty_mask_counts() == {"A": {"prediction": 1, "reference": 1, "both": 1}}
    assert [scores.empty_mask(case, 0) for case in range(4)] == ["both", "prediction", "reference", ""]


def test_the_paired_difference_uses_the_cases_that_both_define() -> None:
    difference = paired_difference(np.array([1.0, 2.0, NAN, 5.0]), np.array([0.0, NAN, 1.0, 2.0]))
    assert (difference.pairs, difference.mean) == (2, 2)


def test_the_p_value_is_wilcoxons() -> None:
    first, second = np.random.default_rng(5).normal(size=(2, 12))
    assert paired_difference(first, second).p_value == stats.wilcoxon(first, second).pvalue


def test_the_p_value_of_equal_scores_is_one_and_of_no_scores_nan() -> None:
    assert wilcoxon_p_value(np.zeros(5)) == 1
    assert math.isnan(wilcoxon_p_value(np.array([])))


def test_compare_matches_cases_by_name() -> None:
    first = make([[0.9], [0.5]], classes=("A",))
    second = Scores(("case1", "other"), ("A",), ("dice",), np.array([[[0.2]], [[0.0]]]), np.ones((2, 1, 2), int))
    difference = compare_scores(first, second)["A"]["dice"]
    assert difference.pairs == 1
    assert difference.mean == pytest.approx(0.3)


def test_compare_leaves_a_class_out_of_the_mean_where_one_of_the_two_lacks_it() -> None:
    """The first one misses the difficult class B everywhere, which must not make it better on the whole."""
    first, second = make([[0.5, NAN], [0.7, NAN], [0.6, 0.1]]), make([[0.5, 0.1], [0.7, 0.2], [0.6, 0.1]])
    differences = compare_scores(first, second)
    assert differences["foreground_mean"]["dice"].pairs == 3
    assert differences["foreground_mean"]["dice"].mean == 0
    assert differences["B"]["dice"].pairs == 1


def test_scores_of_different_classes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same classes"):
        compare_scores(make([[1.0]], classes=("A",)), make([[1.0]], classes=("B",)))


def test_two_values_have_an_interval_and_one_has_none() -> None:
    assert np.isfinite(bootstrap_interval(np.array([1.0, 2.0]))).all()
    assert np.isnan(bootstrap_interval(np.array([1.0]))).all()


def test_the_interval_is_the_bias_corrected_bootstrap_of_the_mean() -> None:
    values = np.random.default_rng(6).gamma(1, size=15)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, confidence_level=0.95, batch=999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap_interval(values) == (expected.low, expected.high)


def test_selected_scores_have_the_requested_order_of_cases_and_measures() -> None:
    values = np.arange(12.0).reshape(3, 2, 2)
    scores = Scores(("a", "b", "c"), ("A", "B"), ("dice", "jaccard"), values, np.arange(12).reshape(3, 2, 2))
    part = select_scores(scores, ("c", "a"), ("jaccard",))
    assert (part.cases, part.measures) == (("c", "a"), ("jaccard",))
    np.testing.assert_array_equal(part.values, [[[9], [11]], [[1], [3]]])
    np.testing.assert_array_equal(part.voxels, scores.voxels[[2, 0]])


def test_rows_run_over_the_classes_of_each_case() -> None:
    scores = make([[0.1, 0.2], [0.3, 0.4]], [[[1, 2], [3, 0]], [[0, 6], [0, 0]]])
    rows = [(case, name, *values, *sizes, empty) for case, name, values, sizes, empty in case_class_rows(scores)]
    assert rows == [
        ("case0", "A", 0.1, 1, 2, ""),
        ("case0", "B", 0.2, 3, 0, "reference"),
        ("case1", "A", 0.3, 0, 6, "prediction"),
        ("case1", "B", 0.4, 0, 0, "both"),
    ]


def test_empty_masks_are_counted_class_by_class() -> None:
    scores = make([[NAN, 0], [0, 0]], [[[0, 0], [0, 9]], [[9, 0], [0, 9]]])
    assert scores.empty_mask_counts() == {
        "A": {"prediction": 0, "reference": 1, "both": 1},
        "B": {"prediction": 2, "reference": 0, "both": 0},
    }


def test_the_difference_is_the_first_minus_the_second_of_the_measures_in_common() -> None:
    first = Scores(("a",), ("A",), ("dice", "hd95_mm"), np.array([[[0.9, 1.0]]]), np.ones((1, 1, 2), int))
    second = Scores(("a",), ("A",), ("jaccard", "dice"), np.array([[[0.1, 0.4]]]), np.ones((1, 1, 2), int))
    assert {name: one.mean for name, one in compare_scores(first, second)["A"].items()} == {"dice": pytest.approx(0.5)}
