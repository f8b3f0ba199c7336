"""``scores``: statistics over cases and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunetv2_crossmatch.evaluation.scores import (
    Scores,
    bootstrap_interval,
    compare_scores,
    paired_difference,
    summarize,
    wilcoxon_p_value,
)

NAN = float("nan")


def make_scores(
    values: list, voxels: list | None = None, classes: tuple[str, ...] = ("A", "B"), **more: object
) -> Scores:
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


def test_the_interval_is_reproducible_and_contains_the_mean() -> None:
    values = np.random.default_rng(3).gamma(2, size=20)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert low < values.mean() < high


def test_the_interval_of_many_normal_values_is_close_to_the_t_interval() -> None:
    values = np.random.default_rng(4).normal(10, 2, 200)
    expected = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.03)


def test_the_mean_over_classes_is_computed_per_case() -> None:
    scores = make_scores([[0.2, 0.4], [0.6, NAN], [NAN, NAN]])
    np.testing.assert_allclose(scores.per_case("foreground_mean", "dice"), [0.3, 0.6, NAN])


def test_a_single_class_has_no_mean_over_classes() -> None:
    assert make_scores([[0.1], [0.2]], classes=("A",)).groups == ("A",)


def test_empty_masks_are_counted_by_which_one_is_empty() -> None:
    scores = make_scores([[NAN], [0], [0], [1]], [[[0, 0]], [[0, 9]], [[9, 0]], [[9, 9]]], classes=("A",))
    assert scores.empty_mask_counts() == {"A": {"prediction": 1, "reference": 1, "both": 1}}
    assert [scores.empty_mask(case, 0) for case in range(4)] == ["both", "prediction", "reference", ""]


def test_the_paired_difference_uses_cases_defined_in_both() -> None:
    difference = paired_difference(np.array([1.0, 2.0, NAN, 5.0]), np.array([0.0, NAN, 1.0, 2.0]))
    assert (difference.pairs, difference.mean) == (2, 2)


def test_the_p_value_is_wilcoxons() -> None:
    first, second = np.random.default_rng(5).normal(size=(2, 12))
    assert paired_difference(first, second).p_value == stats.wilcoxon(first, second).pvalue


def test_the_p_value_of_equal_scores_is_one_and_of_no_scores_nan() -> None:
    assert wilcoxon_p_value(np.zeros(5)) == 1
    assert math.isnan(wilcoxon_p_value(np.array([])))


def test_compare_matches_cases_by_name() -> None:
    first = make_scores([[0.9], [0.5]], classes=("A",))
    second = Scores(("case1", "other"), ("A",), ("dice",), np.array([[[0.2]], [[0.0]]]), np.ones((2, 1, 2), int))
    difference = compare_scores(first, second)["A"]["dice"]
    assert difference.pairs == 1
    assert difference.mean == pytest.approx(0.3)


def test_a_class_undefined_in_one_of_two_scores_is_excluded_from_the_mean() -> None:
    """The first model predicts no voxel of the difficult class B, which must not improve its mean."""
    first, second = make_scores([[0.5, NAN], [0.7, NAN], [0.6, 0.1]]), make_scores([[0.5, 0.1], [0.7, 0.2], [0.6, 0.1]])
    differences = compare_scores(first, second)
    assert differences["foreground_mean"]["dice"].pairs == 3
    assert differences["foreground_mean"]["dice"].mean == 0
    assert differences["B"]["dice"].pairs == 1


def test_scores_of_different_classes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same classes"):
        compare_scores(make_scores([[1.0]], classes=("A",)), make_scores([[1.0]], classes=("B",)))
