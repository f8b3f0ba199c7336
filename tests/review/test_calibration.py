from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_crossmatch.review.calibration import calibrate


def test_fewer_than_six_cases_do_not_calibrate():
    assert calibrate([0.1] * 5, [0.9] * 5) is None


def test_line_and_margin_are_those_of_a_slow_statement():
    random = np.random.default_rng(0)
    x = random.uniform(0, 0.3, 9)
    y = 0.9 - 1.5 * x + random.normal(0, 0.03, 9)
    line = calibrate(x.tolist(), y.tolist())
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    missed = []
    for left in range(9):
        rest = [i for i in range(9) if i != left]
        missed.append(abs(y[left] - np.polyval(np.polyfit(x[rest], y[rest], 1), x[left])))
    assert line.margin == pytest.approx(sorted(missed)[7])  # of nine, 80 % of ten


def test_the_interval_holds_four_of_five_new_cases():
    random = np.random.default_rng(1)
    held = []
    for _ in range(300):
        x = random.uniform(0, 0.3, 13)
        y = 0.8 - x + random.normal(0, 0.05, 13)
        expected = calibrate(x[:12].tolist(), y[:12].tolist()).expect(float(x[12]))
        held.append(expected.low <= y[12] <= expected.high)
    assert np.mean(held) == pytest.approx(0.8, abs=0.07)


def test_beyond_the_held_out_cases_the_nearest_counts_and_it_is_told():
    line = calibrate([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert line.expect(2.0).dice == pytest.approx(0.4)
    assert line.expect(2.0).beyond
    assert not line.expect(0.3).beyond
    assert line.expect(0.0).dice == pytest.approx(0.9)


def test_a_rising_line_is_replaced_by_the_mean():
    line = calibrate([1, 2, 3, 4, 5, 6], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert line.slope == 0
    assert line.expect(1).dice == pytest.approx(0.35)


def test_dice_and_interval_stay_between_0_and_1():
    line = calibrate([0, 0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 0.9, 0.2, 0, 0])
    for one in (line.expect(0.0), line.expect(0.5)):
        assert 0 <= one.low <= one.dice <= one.high <= 1
