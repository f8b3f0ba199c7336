"""What a review says of its cases: expected Dice, order, notes on what is unusual, and which to label next.

Limit: computes with results; nothing is read or drawn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.review.calibration import FEWEST, Calibration, ExpectedDice, calibrate
from nnunetv2_crossmatch.review.case_results import CaseResult
from nnunetv2_crossmatch.review.labeled_cases import LabeledCase, has_measured_volume, volume_z
from nnunetv2_crossmatch.review.measures import FEWEST_FOR_Z
from nnunetv2_crossmatch.review.selection import Choice, choose

UNUSUAL_Z = 3.5  # Iglewicz and Hoaglin, How to detect and handle outliers, 1993
SMALLEST_MAIN_PART = 0.95


@dataclass(frozen=True)
class ReviewedCase:
    """A case with what follows from its result; ``why`` is empty unless it is to be labeled next."""

    result: CaseResult
    uncertainty: float
    expected: ExpectedDice | None
    z: Mapping[str, float]
    notes: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class Conclusions:
    """All of a review.

    Attributes:
        cases: worst first.
        chosen: those to label next, the best first.
        failed: problems of cases that could not be used.
        in_ml: whether volumes are in ml; else in voxels.
        kinds: what disagrees; empty: ordered by unsure voxels.
        calibration: None if expected Dice is not known.
        labeled: the labeled cases that volumes are compared with.
        left_out: a sentence for everything that could not be said.
    """

    cases: tuple[ReviewedCase, ...]
    chosen: tuple[ReviewedCase, ...]
    failed: tuple[Problem, ...]
    in_ml: bool
    kinds: tuple[str, ...]
    calibration: Calibration | None
    labeled: tuple[LabeledCase, ...]
    left_out: tuple[str, ...]


def conclude(
    results: Sequence[CaseResult],
    labeled: Sequence[LabeledCase],
    known: Sequence[CaseResult],
    kinds: Collection[str],
    count: int,
    failed: Sequence[Problem],
) -> Conclusions:
    """Conclusions of measured cases.

    Args:
        results: of the unlabeled cases, at least one.
        labeled: what is usual.
        known: of held-out cases, with their Dice.
        kinds: of disagreement that both have, which expected Dice is learned from.
        count: how many to choose.
        failed: problems of other cases.
    """
    in_ml = has_measured_volume([*results, *labeled])
    line = calibrate([one.uncertainty(kinds) for one in known], [one.dice for one in known])

    def reviewed(result: CaseResult) -> ReviewedCase:
        z = volume_z(result, labeled, in_ml)
        expected = line.expect(result.uncertainty(kinds)) if line and not result.is_empty else None
        return ReviewedCase(result, result.uncertainty(), expected, z, tuple(unusual(result, z, labeled)))

    cases = sorted(map(reviewed, results), key=lambda one: (-one.uncertainty, one.result.case))
    every = tuple(results[0].disagreement)
    choices = choose([one.uncertainty for one in cases], [one.result.features for one in cases], count)
    whys = {choice.index: why(choice, cases) for choice in choices}
    cases = [replace(one, why=whys.get(index, "")) for index, one in enumerate(cases)]
    chosen = tuple(cases[choice.index] for choice in choices)
    left_out = tuple(sentences_left_out(every, line, len(known), len(labeled)))
    return Conclusions(tuple(cases), chosen, tuple(failed), in_ml, every, line, tuple(labeled), left_out)


def unusual(result: CaseResult, z: Mapping[str, float], labeled: Sequence[LabeledCase]) -> Iterator[str]:
    """Notes on what the labeled cases do not have: missing classes, volumes, several parts, a touched border."""
    if result.is_empty:
        yield "nothing found"
        return
    for name, one in result.classes.items():
        others = [case.classes[name] for case in labeled]
        if not one.voxels:
            if all(other.voxels for other in others):
                yield f"{name} missing"
            continue
        if abs(z[name]) > UNUSUAL_Z:
            yield f"{name} unusually {'large' if z[name] > 0 else 'small'} (z {z[name]:+.1f})"
        largest = [other.largest for other in others if other.voxels]
        if one.largest < min([SMALLEST_MAIN_PART, *largest]) and not usually_several(largest):
            yield f"{name} in {one.components} parts, the largest {one.largest:.0%}"
        if new := set(one.borders) - {axis for other in others for axis in other.borders}:
            yield f"{name} touches the image border ({', '.join(sorted(new, reverse=True))})"


def usually_several(largest: Sequence[float]) -> bool:
    """Whether a class has no main part in most labeled cases, as lesions or nuclei; ``largest``: share in each."""
    return sum(share < SMALLEST_MAIN_PART for share in largest) * 2 > len(largest)


def why(choice: Choice, cases: Sequence[ReviewedCase]) -> str:
    """Why a case is to be labeled, in a sentence; ``cases`` are those that the choice counts."""
    one = cases[choice.index]
    kind = "disagreement" if one.result.disagreement else "share of unsure surface voxels"
    text = f"{kind} {one.uncertainty:.3f}, number {choice.place} of {len(cases)}"
    if choice.nearest is not None and choice.distance is not None:
        nearest = cases[choice.nearest].result.case
        text += f"; of those above, {nearest} is most like it, at {choice.distance:.0%} of the largest distance"
    return "; ".join([text, *one.notes])


def sentences_left_out(kinds: Sequence[str], line: Calibration | None, known: int, labeled: int) -> Iterator[str]:
    """What the page cannot say, and what it would take."""
    if not kinds:
        yield (
            "Disagreement is left out: this model learned no perturbed streams, and has no second network, moving "
            "average or further fold. Cases are ordered by unsure surface voxels."
        )
    if line is None:
        yield (
            f"Expected Dice is left out (not calibrated): it is learned from at least {FEWEST} labeled cases that the "
            f"model did not learn from, and there are {known} (validation cases of a fold, or --held-out)."
        )
    elif math.isclose(line.slope, 0, abs_tol=1e-12):
        yield "Expected Dice is the mean of the held-out cases: in these, uncertainty does not tell Dice."
    if labeled < FEWEST_FOR_Z:
        yield f"Volumes are not compared: that takes {FEWEST_FOR_Z} wholly labeled cases, and there are {labeled}."
