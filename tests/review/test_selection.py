from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_crossmatch.review.selection import choose


def test_choices_by_hand():
    """The most unsure one; then not its twin, but the far one, although it is sure."""
    chosen = choose([0.9, 0.8, 0.3, 0.1], [[0.0, 0.0], [0.0, 0.1], [4.0, 0.0], [0.0, 4.0]], 3)
    assert [one.index for one in chosen] == [0, 2, 3]
    assert [one.place for one in chosen] == [1, 3, 4]
    assert chosen[0].nearest is None
    assert chosen[1].nearest == 0
    assert 0 < chosen[1].distance <= 1


def slow_choice(uncertainty: list[float], features: np.ndarray, count: int) -> list[int]:
    scaled = (features - features.mean(0)) / features.std(0)
    largest = max(np.linalg.norm(a - b) for a in scaled for b in scaled)
    ranks = [sum(other <= value for other in uncertainty) / len(uncertainty) for value in uncertainty]
    chosen = [int(np.argmax(ranks))]
    while len(chosen) < count:
        near = [min(np.linalg.norm(one - scaled[i]) for i in chosen) / largest for one in scaled]
        values = [-1 if i in chosen else ranks[i] * near[i] for i in range(len(ranks))]
        chosen.append(int(np.argmax(values)))
    return chosen


def test_choices_are_those_of_a_slow_statement():
    random = np.random.default_rng(0)
    uncertainty, features = random.uniform(size=30).tolist(), random.normal(size=(30, 5)) * [1, 10, 0.1, 3, 1]
    assert [one.index for one in choose(uncertainty, features.tolist(), 8)] == slow_choice(uncertainty, features, 8)


@pytest.mark.parametrize("features", [[[]] * 4, [[1.0, 2.0]] * 4])
def test_without_features_that_differ_it_is_the_order_of_uncertainty(features):
    chosen = choose([0.1, 0.4, 0.2, 0.3], features, 10)
    assert [one.index for one in chosen] == [1, 3, 2, 0]
    assert {one.nearest for one in chosen} == {None}


def test_none_is_chosen_if_none_is_wanted():
    assert choose([0.1, 0.2], [[1.0], [2.0]], 0) == []
