from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunetv2_crossmatch.report.contours import (
    PREDICTION_STYLES,
    REFERENCE_STYLE,
    CaseVolumes,
    choose_slices,
    draw_cases,
    draw_slice,
    label_contours,
    percentile_window,
    worst_slice,
)

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


def test_slices_lie_within_the_labels():
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


def test_the_window_ignores_non_finite_voxels():
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


def test_evenly_spread_slices_leave_out_the_ends():
    assert choose_slices(box(2, 11), [box(2, 11)], 3) == [4, 6, 8]
    assert choose_slices(box(0, 0), [box(0, 0)], 1) == [6]


def test_slices_cover_the_labels_of_all_predictions():
    assert max(choose_slices(box(2, 5), [box(2, 12), box(2, 5)], 5)) >= 9


def test_the_crop_is_the_box_of_all_contours_with_a_margin_of_a_third():
    """Rows 5 to 14 and columns 8 to 19, wider by 0.35 of their length and at least 4, within the image."""
    assert case().crop == (slice(1, 19), slice(4, 24))
    assert case(predictions={"a": box(0, 0)}, reference=box(0, 0)).crop == (slice(0, 20), slice(0, 30))


def test_the_crop_of_a_small_object_has_a_margin_of_four_voxels():
    reference = np.zeros(SHAPE, np.uint8)
    reference[3, 10, 2] = reference[4, 10, 3] = 1
    assert case(reference=reference, predictions={}).crop == (slice(6, 15), slice(0, 8))


def test_a_slice_is_cropped_with_its_first_row_on_top():
    axes = Figure().subplots()
    draw_slice(axes, case(), 5)
    assert (axes.get_xlim(), axes.get_ylim()) == ((3.5, 23.5), (18.5, 0.5))


@pytest.mark.parametrize(("spacing", "ratio"), [((1, 2, 3), 18 * 2 / (20 * 3)), ((1, 9, 1), 2.0)])
def test_the_aspect_ratio_is_physical_and_at_most_two(spacing, ratio):
    assert case(spacing=spacing).aspect_ratio == pytest.approx(ratio)


def test_without_a_spacing_voxels_are_cubes():
    axes = Figure().subplots()
    draw_slice(axes, case(), 5)
    assert (axes.get_aspect(), case().spacing) == (1, (1, 1, 1))


def test_gray_values_run_from_black_to_white_within_the_window():
    axes = Figure().subplots()
    image = np.zeros(SHAPE)
    image[5] = np.linspace(-1, 3, 600).reshape(20, 30)
    picture = case(image=image)
    picture.__dict__["intensity_window"] = (0.0, 2.0)
    draw_slice(axes, picture, 5)
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown, np.clip(image[5] / 2, 0, 1))
    assert axes.images[0].get_clim() == (0, 1)


def test_reference_and_predictions_have_lines_of_their_own():
    axes = Figure().subplots()
    draw_slice(axes, case(predictions={"a": box(3, 10), "b": box(3, 10)}), 5)
    colours = [to_hex(lines.get_color()[0]) for lines in axes.collections]
    assert colours == [style["colors"] for style in (REFERENCE_STYLE, *PREDICTION_STYLES[:2])]


def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that would have been saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (figures.append(figure), file.write_bytes(b"x")))
    return figures


def test_cases_are_rows_with_titled_slices_and_one_legend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    figures = saved(monkeypatch)
    wrong = box(2, 9)
    wrong[8] = 1
    draw_cases([case(predictions={"a": wrong}), case(title="other", predictions={"a": box(2, 9)})], tmp_path / "x", 2)
    first, second = figures[0].subfigs
    titles = [[axes.get_title() for axes in row.axes] for row in (first, second)]
    assert titles == [["slice 4\n", "slice 6\n", "slice 8\nworst: a"], ["slice 4\n", "slice 6\n", ""]]
    assert [row.get_suptitle() for row in (first, second)] == ["case", "other"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["reference", "a"]
    assert not any(axes.axison for row in (first, second) for axes in row.axes)


def test_a_hole_has_an_outline_and_a_higher_label_in_it_leaves_the_border_to_the_lower():
    labels = np.ones((9, 9), np.uint8)
    labels[3:6, 3:6] = 0
    assert len(label_contours(labels, 1)) == 2
    labels[3:6, 3:6] = 2
    assert (len(label_contours(labels, 1)), len(label_contours(labels, 2))) == (2, 0)
