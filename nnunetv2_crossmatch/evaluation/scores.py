"""Scores: the measures of many cases and classes in one array, their statistics, and the paired difference of two.

Limit: numbers only. ``evaluation`` makes them from folders, ``score_files`` writes them down.
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
    """One measure over cases; NaN where too few are defined.

    ``defined`` cases enter; ``undefined`` ones (NaN: an empty mask, or both empty) do not. ``std`` is the sample
    standard deviation (n - 1); ``low`` to ``high`` is the 95 % interval of the mean.
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

    ``pairs`` counts the cases in which both are defined. The p-value is two-sided.
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
        cases, classes, measures: names along the axes of ``values``; measures are names of :class:`metrics.Measures`,
            ``hd95_mm`` and ``asd_mm`` only where the spacing is known.
        values: float64 (case, class, measure); NaN where a measure is not defined.
        voxels: int64 (case, class, 2), sizes of prediction and reference.
        missing: reference cases without a prediction (not scored); extra: predictions without a reference (not scored).
        literature: an empty prediction counts as 0 in everything, as in published tables.
        notes: what the reader of the numbers must know, one sentence each.
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
        """What statistics are given for: each class and, if there are several, the mean over the classes of a case."""
        return (*self.classes, FOREGROUND_MEAN) if len(self.classes) > 1 else self.classes

    def of(self, group: str, measure: str) -> FloatArray:
        """Values of one measure over the cases; ``foreground_mean`` averages the classes in which it is defined."""
        values = self.values[:, :, self.measures.index(measure)]
        if group in self.classes:
            return values[:, self.classes.index(group)]
        defined = np.count_nonzero(np.isfinite(values), axis=1)
        return np.divide(np.nansum(values, axis=1), defined, out=np.full(len(values), NAN), where=defined > 0)

    def empty(self, case: int, which: int) -> str:
        """Which mask of this case and class index has no voxel: ``prediction``, ``reference``, ``both`` or nothing."""
        prediction, reference = (int(size) == 0 for size in self.voxels[case, which])
        return "both" if prediction and reference else "prediction" * prediction + "reference" * reference

    def empty_counts(self) -> dict[str, dict[str, int]]:
        """How often prediction, reference or both are empty: ``[class][which]``."""
        found = [[self.empty(case, which) for case in range(len(self.cases))] for which in range(len(self.classes))]
        kinds = ("prediction", "reference", "both")
        return {name: {kind: found[i].count(kind) for kind in kinds} for i, name in enumerate(self.classes)}

    def summary(self) -> dict[str, dict[str, Summary]]:
        """Statistics over the cases: ``[group][measure]``."""
        return {group: {name: summarize(self.of(group, name)) for name in self.measures} for group in self.groups}


def summarize(values: FloatArray) -> Summary:
    """Statistics of one measure; ``values`` has one number, or NaN, per case."""
    defined = values[np.isfinite(values)]
    count = len(defined)
    mean = float(defined.mean()) if count else NAN
    std = float(defined.std(ddof=1)) if count > 1 else NAN
    return Summary(count, len(values) - count, mean, std, *interval(defined))


def interval(values: FloatArray) -> tuple[float, float]:
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


def paired(first: FloatArray, second: FloatArray) -> Difference:
    """Paired difference of one measure; both arrays have one number, or NaN, per case, in the same order."""
    difference = first - second
    difference = difference[np.isfinite(difference)]
    mean = float(difference.mean()) if len(difference) else NAN
    return Difference(len(difference), mean, *interval(difference), wilcoxon_p(difference))


def wilcoxon_p(difference: FloatArray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test (zeros dropped); 1 if all are zero, NaN without any."""
    if not len(difference):
        return NAN
    return float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0


def compare(first: Scores, second: Scores) -> dict[str, dict[str, Difference]]:
    """Paired differences, first minus second, over the cases that both have: ``[group][measure]``.

    A class counts in the cases in which both define the measure, in the mean over classes too: means over different
    classes would compare structures, not methods.

    Raises:
        ValueError: the two have different classes.
    """
    if first.classes != second.classes:
        raise ValueError(f"scores of the same classes expected, got {first.classes} and {second.classes}")
    measures = tuple(name for name in first.measures if name in second.measures)
    common = tuple(case for case in first.cases if case in second.cases)
    one, other = (part_of(scores, common, measures) for scores in (first, second))
    undefined = ~(np.isfinite(one.values) & np.isfinite(other.values))
    one, other = (replace(scores, values=np.where(undefined, NAN, scores.values)) for scores in (one, other))
    return {
        group: {name: paired(one.of(group, name), other.of(group, name)) for name in measures} for group in one.groups
    }


def part_of(scores: Scores, cases: Sequence[str], measures: Sequence[str]) -> Scores:
    """``scores`` of these ``cases`` and ``measures`` alone, in their order."""
    rows = [scores.cases.index(case) for case in cases]
    columns = [scores.measures.index(name) for name in measures]
    values = scores.values[rows][:, :, columns]
    return replace(scores, cases=tuple(cases), measures=tuple(measures), values=values, voxels=scores.voxels[rows])


def each_row(scores: Scores) -> Iterator[tuple[str, str, FloatArray, NDArray[np.int64], str]]:
    """Case, class, measures, sizes and what is empty, one row per case and class, in order."""
    for i, case in enumerate(scores.cases):
        for j, name in enumerate(scores.classes):
            yield case, name, scores.values[i, j], scores.voxels[i, j], scores.empty(i, j)
