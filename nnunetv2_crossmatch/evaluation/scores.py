"""Scores: the measures of all cases and classes in one array, their statistics, and paired differences.

Limit: numbers only. ``evaluate`` computes them from folders, ``score_files`` writes them to files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunetv2_crossmatch.evaluation.metrics import NAN, FloatArray

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
FOREGROUND_MEAN = "foreground_mean"


@dataclass(frozen=True)
class Summary:
    """Statistics of one measure over cases; NaN where too few values are defined.

    ``defined`` and ``undefined`` count the cases; undefined ones (NaN: an empty mask) do not enter the mean. ``std``
    is the sample standard deviation (n - 1); ``low`` to ``high`` is the 95 % interval of the mean.
    """

    defined: int
    undefined: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences (first minus second) with its 95 % interval, and the Wilcoxon p-value.

    ``pairs`` counts the cases in which both values are defined. The p-value is two-sided.
    """

    pairs: int
    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Scores:
    """All measures of one folder of predictions.

    Attributes:
        cases: names along the first axis of ``values``.
        classes: those along the second axis.
        measures: those along the third axis, fields of :class:`metrics.Measures`; ``hd95_mm`` and ``asd_mm`` only if
            the spacing is known.
        values: float64 (case, class, measure); NaN for an undefined measure.
        voxels: int64 (case, class, 2), voxel counts of prediction and reference.
        missing: reference cases without a prediction (not scored).
        extra: predictions without a reference (not scored).
        literature: True if every measure of an empty prediction counts as 0, as in the published tables.
        notes: remarks that must be printed with the numbers, one sentence each.
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    measures: tuple[str, ...]
    values: FloatArray
    voxels: NDArray[np.int64]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    literature: bool = False
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the rows of all statistics: each class and, for several classes, the mean over them."""
        return (*self.classes, FOREGROUND_MEAN) if len(self.classes) > 1 else self.classes

    def per_case(self, group: str, measure: str) -> FloatArray:
        """Values (case) of one measure; the group ``foreground_mean`` averages the classes with a defined value."""
        values = self.values[:, :, self.measures.index(measure)]
        if group in self.classes:
            return values[:, self.classes.index(group)]
        defined = np.count_nonzero(np.isfinite(values), axis=1)
        return np.divide(np.nansum(values, axis=1), defined, out=np.full(len(values), NAN), where=defined > 0)

    def empty_mask(self, case: int, class_index: int) -> str:
        """Which mask of this case and class is empty: ``prediction``, ``reference``, ``both``, or an empty string."""
        prediction, reference = (int(size) == 0 for size in self.voxels[case, class_index])
        return "both" if prediction and reference else "prediction" * prediction + "reference" * reference

    def empty_mask_counts(self) -> dict[str, dict[str, int]]:
        """Number of cases in which the prediction, the reference or both are empty: ``[class][which mask]``."""
        cases, kinds = range(len(self.cases)), ("prediction", "reference", "both")
        empty = {name: [self.empty_mask(case, index) for case in cases] for index, name in enumerate(self.classes)}
        return {name: {kind: found.count(kind) for kind in kinds} for name, found in empty.items()}

    def amounts(self) -> dict[str, float]:
        """Voxels predicted per voxel of the reference, summed over the cases, by class; NaN without reference."""
        sums = zip(self.classes, self.voxels.sum(axis=0).tolist(), strict=True)
        return {name: predicted / reference if reference else NAN for name, (predicted, reference) in sums}

    def summary(self) -> dict[str, dict[str, Summary]]:
        """Statistics over the cases: ``[group][measure]``."""
        return {group: {name: summarize(self.per_case(group, name)) for name in self.measures} for group in self.groups}


def summarize(values: FloatArray) -> Summary:
    """Statistics of one measure; ``values`` (case) may contain NaN."""
    defined = values[np.isfinite(values)]
    count = len(defined)
    mean = float(defined.mean()) if count else NAN
    std = float(defined.std(ddof=1)) if count > 1 else NAN
    return Summary(count, len(values) - count, mean, std, *bootstrap_interval(defined))


def bootstrap_interval(values: FloatArray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over cases (BCa, 9999 resamples, fixed seed); NaN for fewer than two values.

    Source: Efron, Better bootstrap confidence intervals, JASA 1987; ``scipy.stats.bootstrap``.
    """
    if len(values) < 2:
        return NAN, NAN
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, batch=999,
        method="BCa", rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_difference(first: FloatArray, second: FloatArray) -> Difference:
    """Paired difference of one measure; both arrays (case) have the same order of cases and may contain NaN."""
    difference = first - second
    difference = difference[np.isfinite(difference)]
    mean = float(difference.mean()) if len(difference) else NAN
    return Difference(len(difference), mean, *bootstrap_interval(difference), wilcoxon_p_value(difference))


def wilcoxon_p_value(difference: FloatArray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test (zeros dropped); 1 if all are zero, NaN without any."""
    if not len(difference):
        return NAN
    return float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0


def compare_scores(first: Scores, second: Scores) -> dict[str, dict[str, Difference]]:
    """Paired differences, first minus second, over the common cases: ``[group][measure]``.

    A class of a case counts only if both scores define the measure, also in the mean over classes: means over
    different classes would compare structures, not methods.

    Raises:
        ValueError: the classes differ.
    """
    if first.classes != second.classes:
        raise ValueError(f"scores of the same classes expected, got {first.classes} and {second.classes}")
    measures = tuple(name for name in first.measures if name in second.measures)
    common = tuple(case for case in first.cases if case in second.cases)
    first, second = (select_scores(scores, common, measures) for scores in (first, second))
    undefined = ~(np.isfinite(first.values) & np.isfinite(second.values))
    first, second = (replace(scores, values=np.where(undefined, NAN, scores.values)) for scores in (first, second))
    return {
        group: {name: paired_difference(first.per_case(group, name), second.per_case(group, name)) for name in measures}
        for group in first.groups
    }


def select_scores(scores: Scores, cases: Sequence[str], measures: Sequence[str]) -> Scores:
    """The part of ``scores`` with these ``cases`` and ``measures``, in this order."""
    rows = [scores.cases.index(case) for case in cases]
    columns = [scores.measures.index(name) for name in measures]
    values = scores.values[rows][:, :, columns]
    return replace(scores, cases=tuple(cases), measures=tuple(measures), values=values, voxels=scores.voxels[rows])


def case_class_rows(scores: Scores) -> Iterator[tuple[str, str, FloatArray, NDArray[np.int64], str]]:
    """Yield case, class, measures, voxel counts and the empty mask, one row per case and class."""

    for i, case in enumerate(scores.cases):
        for j, name in enumerate(scores.classes):
            yield case, name, scores.values[i, j], scores.voxels[i, j], scores.empty_mask(i, j)
