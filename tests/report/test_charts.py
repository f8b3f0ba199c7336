from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_crossmatch.evaluation.scores import Scores, summarize
from nnunetv2_crossmatch.report.charts import _wrap_name, main_distance_measure, plot_cases, plot_pairs

MEASURES = ("dice", "jaccard", "hd95_voxel", "asd_voxel")


def scores(dice: list[float], classes: int = 1) -> Scores:
    values = np.full((len(dice), classes, 4), 1.0)
    values[:, :, 0] = np.array(dice)[:, None]
    names = tuple(f"class{i}" for i in range(classes))
    return Scores(tuple(map(str, range(len(dice)))), names, MEASURES, values, np.ones((len(dice), classes, 2), int))


def test_every_case_is_a_dot():
    axes = plot_cases({"a": scores([0.1, 0.5, 0.9])}).axes[0]
    assert sorted(axes.collections[0].get_offsets()[:, 0]) == pytest.approx([0.1, 0.5, 0.9])


def test_classes_and_their_mean_are_rows():
    axes = plot_cases({"a": scores([0.1, 0.5], classes=2)}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class0", "class1", "mean of classes"]


def test_an_undefined_case_is_left_out_of_the_pairs():
    figure = plot_pairs(("a", scores([0.5, float("nan"), 0.7])), ("b", scores([0.4, 0.5, 0.8])))
    assert "1 of 2 better" in figure.axes[0].get_title()


def test_pairs_run_from_the_other_predictions_to_these():
    line = plot_pairs(("a", scores([0.9])), ("b", scores([0.4]))).axes[0].lines[0]
    assert list(line.get_ydata()) == [0.4, 0.9]


def test_many_classes_end_with_their_mean():
    figure = plot_pairs(("a", scores([0.9], classes=12)), ("b", scores([0.4], classes=12)))
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 8
    assert titles[-1].startswith("mean of classes")


def test_a_narrow_chart_is_narrow():
    wide, narrow = (plot_cases({"a": scores([0.1, 0.9])}, narrow=narrow).get_figwidth() for narrow in (False, True))
    assert narrow < wide / 2


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", ["crossmatch_unsup0p1_seed0", "w" * 90])
def test_the_legend_stays_inside_the_picture(name, narrow):
    figure = plot_cases({name: scores([0.1, 0.9]), f"{name}_2": scores([0.2, 0.8])}, narrow)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


def test_the_distance_is_in_mm_where_it_is_known():
    known = Scores(("a",), ("x",), ("hd95_voxel", "hd95_mm"), np.ones((1, 1, 2)), np.ones((1, 1, 2), int))
    assert (main_distance_measure(known), main_distance_measure(scores([0.5]))) == ("hd95_mm", "hd95_voxel")


def test_the_mean_stands_on_its_interval_at_the_row_of_its_class():
    one = scores([0.1, 0.5, 0.9], classes=2)
    line, mean = plot_cases({"a": one}).axes[0].lines[2:4]
    of = summarize(one.per_case("class1", "dice"))
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([of.low, of.high], [1, 1])
    assert (list(mean.get_xdata()), list(mean.get_ydata())) == ([pytest.approx(0.5)], [1])


def test_two_sets_of_predictions_lie_above_and_below_the_row():
    figure = plot_cases({"a": scores([0.1, 0.5]), "b": scores([0.2, 0.6])})
    axes, (legend,) = figure.axes[0], figure.legends
    assert [line.get_ydata()[0] for line in axes.lines[::2]] == pytest.approx([-0.21, 0.21])
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    colours = [[one.get_facecolor().tolist() for one in ones] for ones in (legend.legend_handles, axes.collections)]
    assert colours[0] == colours[1] != colours[0][::-1]


def test_dots_of_a_row_do_not_reach_another():
    axes = plot_cases({"a": scores([0.5] * 50), "b": scores([0.5] * 50)}).axes[0]
    first, second = (collection.get_offsets()[:, 1] for collection in axes.collections)
    assert -0.5 < first.min() < first.max() < second.min() < second.max() < 0.5
    assert len(set(first)) == 50


def test_dice_ends_at_one_and_distance_begins_at_zero_with_the_first_class_on_top():
    dice, distance = plot_cases({"a": scores([0.5, 0.9], classes=2)}).axes
    assert dice.get_xlim()[1] == 1.005
    assert distance.get_xlim()[0] == 0
    assert (dice.get_ylim(), dice.get_xlabel(), distance.get_xlabel()) == ((2.5, -0.5), "Dice", "95HD voxel")


def test_a_single_set_of_predictions_needs_no_legend():
    assert not plot_cases({"a": scores([0.5, 0.9])}).legends


def test_better_cases_are_solid_and_equal_ones_count_as_not_better():
    axes = plot_pairs(("a", scores([0.9, 0.5, 0.5])), ("b", scores([0.4, 0.6, 0.5]))).axes[0]
    assert axes.get_title() == "class0\n1 of 3 better"
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "--"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "a"]


def test_pairs_are_matched_by_case():
    first, second = scores([0.9, 0.1]), scores([0.1, 0.9])
    turned = Scores(("1", "0"), second.classes, MEASURES, second.values, second.voxels)
    lines = plot_pairs(("a", first), ("b", turned)).axes[0].lines
    assert sorted(tuple(line.get_ydata()) for line in lines) == [(0.1, 0.1), (0.9, 0.9)]


@pytest.mark.parametrize(
    ("classes", "narrow", "panels", "shown"), [(1, False, 1, 1), (3, False, 4, 4), (4, False, 8, 5), (2, True, 4, 3)]
)
def test_panels_come_in_rows_and_those_without_a_class_are_empty(classes, narrow, panels, shown):
    figure = plot_pairs(("a", scores([0.9], classes)), ("b", scores([0.4], classes)), narrow)
    assert (len(figure.axes), sum(axes.axison for axes in figure.axes)) == (panels, shown)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("short", "short"),
        ("crossmatch_seed0", "crossmatch_\nseed0"),
        ("crossmatch_unsup_seed0", "crossmatch_\nunsup_seed0"),
        ("ten_letter", "ten_letter"),
        ("eleven_lets", "eleven_\nlets"),
        ("w" * 15, "w" * 13 + "…"),
        ("w" * 14, "w" * 14),
    ],
)
def test_a_long_name_is_broken_near_its_middle(name, text):
    assert _wrap_name(name) == text
