from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_crossmatch.evaluation.scores import Scores
from nnunetv2_crossmatch.report.charts import plot_cases, plot_pairs

MEASURES = ("dice", "jaccard", "hd95_voxel", "asd_voxel")


def make_scores(dice: list[float], classes: int = 1) -> Scores:
    values = np.full((len(dice), classes, 4), 1.0)
    values[:, :, 0] = np.array(dice)[:, None]
    names = tuple(f"class{i}" for i in range(classes))
    return Scores(tuple(map(str, range(len(dice)))), names, MEASURES, values, np.ones((len(dice), classes, 2), int))


def test_every_case_is_a_dot():
    axes = plot_cases({"a": make_scores([0.1, 0.5, 0.9])}).axes[0]
    assert sorted(axes.collections[0].get_offsets()[:, 0]) == pytest.approx([0.1, 0.5, 0.9])


def test_classes_and_their_mean_are_rows():
    axes = plot_cases({"a": make_scores([0.1, 0.5], classes=2)}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class0", "class1", "mean of classes"]


def test_an_undefined_case_is_excluded_from_the_pairs():
    figure = plot_pairs(("a", make_scores([0.5, float("nan"), 0.7])), ("b", make_scores([0.4, 0.5, 0.8])))
    assert "1 of 2 better" in figure.axes[0].get_title()


def test_paired_lines_run_from_the_second_to_the_first_predictions():
    line = plot_pairs(("a", make_scores([0.9])), ("b", make_scores([0.4]))).axes[0].lines[0]
    assert list(line.get_ydata()) == [0.4, 0.9]


def test_many_classes_end_with_their_mean():
    figure = plot_pairs(("a", make_scores([0.9], classes=12)), ("b", make_scores([0.4], classes=12)))
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 8
    assert titles[-1].startswith("mean of classes")


def test_a_narrow_chart_is_narrow():
    wide, narrow = (
        plot_cases({"a": make_scores([0.1, 0.9])}, narrow=narrow).get_figwidth() for narrow in (False, True)
    )
    assert narrow < wide / 2


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", ["crossmatch_unsup0p1_seed0", "w" * 90])
def test_the_legend_fits_into_the_figure(name, narrow):
    figure = plot_cases({name: make_scores([0.1, 0.9]), f"{name}_2": make_scores([0.2, 0.8])}, narrow)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
