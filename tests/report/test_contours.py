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


def box_labels(low: int, high: int, value: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[low:high, 5:15, 8:20] = value
    return labels


def make_case(**changes: object) -> CaseVolumes:
    image = np.random.default_rng(0).normal(size=SHAPE)
    values = {
        "title": "case",
        "image": image,
        "reference": box_labels(2, 9),
        "predictions": {"a": box_labels(3, 10)},
        **changes,
    }
    return CaseVolumes(**values)


def count_contours(picture: CaseVolumes, index: int) -> int:
    axes = Figure().subplots()
    draw_slice(axes, picture, index)
    return len(axes.collections)


def test_the_worst_slice_has_the_most_wrong_voxels():
    prediction = box_labels(2, 9)
    prediction[5, :3] = 1
    assert worst_slice(box_labels(2, 9), prediction) == 5


def test_equal_labels_have_no_worst_slice():
    assert worst_slice(box_labels(2, 9), box_labels(2, 9)) is None


def test_slices_lie_within_the_labels():
    chosen = choose_slices(box_labels(4, 10), [box_labels(4, 10)], 3)
    assert all(4 <= index < 10 for index in chosen)


def test_the_worst_slice_is_among_the_chosen():
    prediction = box_labels(2, 9)
    prediction[8] = 1
    assert 8 in choose_slices(box_labels(2, 9), [prediction], 2)


def test_slices_are_ascending_and_unique():
    chosen = choose_slices(box_labels(5, 7), [box_labels(5, 7)], 5)
    assert chosen == sorted(set(chosen))


def test_slices_of_an_empty_case_spread_over_the_volume():
    empty = box_labels(0, 0)
    assert len(choose_slices(empty, [empty], 3)) >= 3


def test_the_window_ignores_non_finite_values():
    image = np.array([[np.nan, *range(101), np.inf]])
    assert percentile_window(image) == pytest.approx((1.0, 99.5))


def test_a_constant_image_has_a_window():
    low, high = percentile_window(np.ones(SHAPE))
    assert high > low


def test_every_segmentation_with_labels_on_the_slice_is_drawn():
    assert count_contours(make_case(), 5) == 2


def test_a_segmentation_without_labels_on_the_slice_is_not_drawn():
    assert count_contours(make_case(), 2) == 1


def test_each_class_has_its_own_contour():
    two_classes = box_labels(2, 9)
    two_classes[:, 5:10] *= 2
    assert count_contours(make_case(reference=two_classes, predictions={}), 5) == 2


def test_a_contour_lies_on_the_edge_of_its_voxels():
    axes = Figure().subplots()
    draw_slice(axes, make_case(predictions={}), 5)
    points = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    assert points.min(axis=0) == pytest.approx([7.5, 4.5])
    assert points.max(axis=0) == pytest.approx([19.5, 14.5])


def test_the_aspect_ratio_follows_the_spacing():
    axes = Figure().subplots()
    draw_slice(axes, make_case(spacing=(5.0, 3.0, 1.5)), 5)
    assert axes.get_aspect() == 2.0


def test_cases_are_drawn_to_a_png(tmp_path: Path):
    draw_cases([make_case(), make_case(title="other")], tmp_path / "cases.png", slices=3)
    height, width, _ = imread(tmp_path / "cases.png").shape
    assert height > 400
    assert width > 600


def test_a_single_case_with_an_empty_prediction_is_drawn(tmp_path: Path):
    draw_cases([make_case(predictions={"a": box_labels(0, 0), "b": box_labels(2, 3)})], tmp_path / "cases.png")
    assert (tmp_path / "cases.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "curves", [{}, {"loss_sup": [0.5]}, {"loss_sup": [1.0, 0.5], "loss_ip": [float("nan"), float("nan")], "other": []}]
)
def test_curves_of_any_length_are_drawn_to_a_png(curves: dict[str, list[float]], tmp_path: Path):
    draw_curves(curves, tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").size > 0


def test_a_failed_drawing_keeps_the_old_file(tmp_path: Path):
    file = tmp_path / "curves.png"
    file.write_bytes(b"old")
    with pytest.raises(ValueError, match="could not convert"):
        draw_curves({"loss_sup": ["no number"]}, file)  # type: ignore[list-item]
    assert [file.read_bytes(), list(tmp_path.iterdir())] == [b"old", [file]]


def test_a_contour_lies_halfway_between_pixels():
    labels = np.zeros((6, 8), np.uint8)
    labels[2:4, 3:6] = 1
    (line,) = label_contours(labels, 1)
    assert (line.min(axis=0).tolist(), line.max(axis=0).tolist()) == ([2.5, 1.5], [5.5, 3.5])


def test_a_mask_at_the_image_border_has_a_closed_contour():
    (line,) = label_contours(np.ones((4, 4), np.uint8), 1)
    np.testing.assert_array_equal(line[0], line[-1])


def test_a_border_of_two_labels_is_drawn_once():
    labels = np.repeat(np.array([[1, 2]], np.uint8), 20, axis=1).repeat(20, axis=0)
    common = [np.isclose(line[:, 0], 19.5).sum() for value in (1, 2) for line in label_contours(labels, value)]
    assert sum(count >= 20 for count in common) == 1
