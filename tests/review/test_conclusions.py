"""What a review notes of a case beside the labeled ones."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from nnunetv2_crossmatch.review.conclusions import UNUSUAL_Z, unusual
from nnunetv2_crossmatch.review.measures import ClassMeasures


def case(voxels: int = 100, components: int = 1, largest: float = 1.0, borders: str = "") -> Any:
    measures = {"organ": ClassMeasures(voxels, components, largest if voxels else math.nan, borders)}
    return SimpleNamespace(classes=measures, is_empty=not voxels)


WHOLE, IN_TWO, MANY = case(), case(components=2, largest=0.93), case(components=30, largest=0.1)
EMPTY, MIXED = case(voxels=0), [case(), case(components=9, largest=0.3)]


@pytest.mark.parametrize(
    ("one", "labeled", "notes"),
    [
        (IN_TWO, [WHOLE, WHOLE], ["organ in 2 parts, the largest 93%"]),
        (case(components=2, largest=0.96), [WHOLE], []),  # 0.95 are its main part
        (IN_TWO, [], ["organ in 2 parts, the largest 93%"]),  # nothing is known of labeled cases
        (case(components=2, largest=0.94), [WHOLE, WHOLE, IN_TWO], []),  # a labeled case is like it
        (case(components=9, largest=0.2), MIXED, ["organ in 9 parts, the largest 20%"]),
        (MANY, [case(components=20, largest=0.2), *MIXED], []),  # the class has several parts
        (MANY, [EMPTY, WHOLE], ["organ in 30 parts, the largest 10%"]),  # without it no labeled case tells
        (case(borders="y"), [case(borders="z")], ["organ touches the image border (y)"]),
        (case(borders="zyx"), [case(borders="y"), WHOLE], ["organ touches the image border (z, x)"]),
        (case(borders="z"), [case(borders="zy")], []),
        (EMPTY, [WHOLE], ["nothing found"]),
    ],
)
def test_what_no_labeled_case_has_is_noted(one, labeled, notes):
    assert list(unusual(one, {"organ": 0.0}, labeled)) == notes


def test_a_class_is_missing_where_every_labeled_case_has_it():
    one = SimpleNamespace(classes=EMPTY.classes | {"other": WHOLE.classes["organ"]}, is_empty=False)
    labeled = [SimpleNamespace(classes=WHOLE.classes | {"other": WHOLE.classes["organ"]})] * 2
    z = {"organ": 0.0, "other": 0.0}
    assert list(unusual(one, z, labeled)) == ["organ missing"]
    without = SimpleNamespace(classes=EMPTY.classes | {"other": WHOLE.classes["organ"]})
    assert list(unusual(one, z, [*labeled, without])) == []


@pytest.mark.parametrize(
    ("z", "notes"),
    [(UNUSUAL_Z, []), (4.04, ["organ unusually large (z +4.0)"]), (-9, ["organ unusually small (z -9.0)"])],
)
def test_volumes_far_from_those_of_the_labeled_cases_are_noted(z, notes):
    assert list(unusual(WHOLE, {"organ": z}, [WHOLE])) == notes
