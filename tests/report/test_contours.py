from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunetv2_crossmatch.report.contours import (
    CaseVolumes,
    choose_slices,
    draw_cases,
    draw_slice,
    label_contours,
    percentile_window,
    worst_slice,
)
from nnunetv2_crossmatch.training.progress import draw_curves

SHAPE = (12, 20, 30)


def box(low: int, high: int, value: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[low:high, 5:15, 8:20] = value
    return labels


def case(**changes: object) -> CaseVolumes:
    image = np.random.default_rng(0).normal(size=SHAPE)
    values = {"title": "case", "image": image, "reference": box(2, 9), "predictions": {"a": box(3, 10)}, **changes}
    return CaseVolumes(**values)


def contours(picture: CaseVolumes, index: int) -> int:
    axes = Figure().subplots()
    draw_slice(axes, picture, index)
    return len(axes.collections)


def test_the_worst_slice_has_the_most_wrong_voxels():
    prediction = box(2, 9)
    prediction[5, :3] = 1
    assert worst_slice(box(2, 9), prediction) == 5


def test_equal_labels_have_no_worst_slice():
    assert worst_slice(box(2, 9), box(2, 9)) is None


def test_slices_lie_within_what_is_covered():
    chosen = choose_slices(box(4, 10), [box(4, 10)], 3)
    assert all(4 <= index < 10 for index in chosen)


def test_the_worst_slice_is_among_the_chosen():
    prediction = box(2, 9)
    prediction[8] = 1
    assert 8 in choose_slices(box(2, 9), [prediction], 2)


def test_slices_are_ascending_and_each_once():
    chosen = choose_slices(box(5, 7), [box(5, 7)], 5)
    assert chosen == sorted(set(chosen))


def test_slices_of_an_empty_case_spread_over_the_volume():
    empty = box(0, 0)
    assert len(choose_slices(empty, [empty], 3)) >= 3


def test_the_window_ignores_what_is_not_finite():
    image = np.array([[np.nan, *range(101), np.inf]])
    assert percentile_window(image) == pytest.approx((1.0, 99.5))


def test_a_constant_image_has_a_window():
    low, high = percentile_window(np.ones(SHAPE))
    assert high > low


def test_every_layer_with_labels_on_the_slice_is_drawn():
    assert contours(case(), 5) == 2


def test_a_layer_without_labels_on_the_slice_is_not_drawn():
    assert contours(case(), 2) == 1


def test_each_class_has_its_own_contour():
    two_classes = box(2, 9)
    two_classes[:, 5:10] *= 2
    assert contours(case(reference=two_classes, predictions={}), 5) == 2


def test_a_contour_lies_on_the_edge_of_its_voxels():
    axes = Figure().subplots()
    draw_slice(axes, case(predictions={}), 5)
    points = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    assert points.min(axis=0) == pytest.approx([7.5, 4.5])
    assert points.max(axis=0) == pytest.approx([19.5, 14.5])


def test_proportions_follow_the_spacing():
    axes = Figure().subplots()
    draw_slice(axes, case(spacing=(5.0, 3.0, 1.5)), 5)
    assert axes.get_aspect() == 2.0


def test_cases_become_a_png(tmp_path: Path):
    draw_cases([case(), case(title="other")], tmp_path / "cases.png", slices=3)
    height, width, _ = imread(tmp_path / "cases.png").shape
    assert height > 400
    assert width > 600


def test_a_single_case_with_an_empty_prediction_is_drawn(tmp_path: Path):
    draw_cases([case(predictions={"a": box(0, 0), "b": box(2, 3)})], tmp_path / "cases.png")
    assert (tmp_path / "cases.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "curves", [{}, {"loss_sup": [0.5]}, {"loss_sup": [1.0, 0.5], "loss_ip": [float("nan"), float("nan")], "other": []}]
)
def test_curves_of_any_length_become_a_png(curves: dict[str, list[float]], tmp_path: Path):
    draw_curves(curves, tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").size > 0


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path):
    file = tmp_path / "curves.png"
    file.write_bytes(b"old")
    with pytest.raises(ValueError, match="could not convert"):
        draw_curves({"loss_sup": ["no number"]}, file)  # type: ignore[list-item]
    assert [file.read_bytes(), list(tmp_path.iterdir())] == [b"old", [file]]


def test_an_outline_runs_halfway_between_the_pixels():
    labels = np.zeros((6, 8), np.uint8)
    labels[2:4, 3:6] = 1
    (line,) = label_contours(labels, 1)
    assert (line.min(axis=0).tolist(), line.max(axis=0).tolist()) == ([2.5, 1.5], [5.5, 3.5])


def test_a_mask_at_the_edge_has_a_closed_outline():
    (line,) = label_contours(np.ones((4, 4), np.uint8), 1)
    np.testing.assert_array_equal(line[0], line[-1])


def test_a_border_of_two_labels_is_drawn_once():
    labels = np.repeat(np.array([[1, 2]], np.uint8), 20, axis=1).repeat(20, axis=0)
    common = [np.isclose(line[:, 0], 19.5).sum() for value in (1, 2) for line in label_contours(labels, value)]
    assert sum(count >= 20 for count in common) == 1
