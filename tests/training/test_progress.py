"""The progress figure: panels, titles, gaps and last values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunetv2_crossmatch.training.progress import CURVE_TITLES, draw_curves


def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from now on, which are not written."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (figures.append(figure), file.touch()))
    return figures


@pytest.mark.parametrize(
    "curves", [{}, {"loss_sup": [0.5]}, {"loss_sup": [1.0, 0.5], "loss_ip": [float("nan"), float("nan")], "other": []}]
)
@pytest.mark.parametrize("name", ["curves.png", "curves", "curves.pdf"])
def test_curves_of_any_length_become_a_png(curves: dict[str, list[float]], name: str, tmp_path: Path):
    draw_curves(curves, tmp_path / name)
    assert imread(tmp_path / name, "png").size > 0


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path):
    file = tmp_path / "curves.png"
    file.write_bytes(b"old")
    with pytest.raises(ValueError, match="could not convert"):
        draw_curves({"loss_sup": ["no number"]}, file)  # type: ignore[list-item]
    assert [file.read_bytes(), list(tmp_path.iterdir())] == [b"old", [file]]


def test_curves_share_an_axis_and_tell_their_last_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    figures = saved(monkeypatch)
    curves = {"loss_sup": [3.0, 2.0, np.nan], "my_own": list(range(40)), "third": [1.0], "none": []}
    draw_curves(curves, tmp_path / "x", columns=2)
    panels = figures[0].axes
    assert [axes.get_title(loc="left") for axes in panels] == [CURVE_TITLES["loss_sup"], "my own", "third", ""]
    assert {axes.get_xlim() for axes in panels[:3]} == {(-0.5, 39.5)}
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [["2"], ["39"], ["1"], []]
    assert [axes.axison for axes in panels] == [True, True, True, False]
    assert [axes.lines[0].get_marker() for axes in panels[:2]] == ["o", ""]
    assert panels[1].lines[0].get_xdata()[-1] == 39


def test_a_panel_looks_as_it_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Sizes in points: what is drawn is larger than what is written beside it, and the grid lies behind both."""
    figures = saved(monkeypatch)
    draw_curves({"loss_sup": [3.0, 2.0]}, tmp_path / "x")
    (axes,) = figures[0].axes
    (line,), (value,) = axes.lines, axes.texts
    assert (line.get_color(), line.get_linewidth(), line.get_markersize()) == ("#1f5fa8", 1.6, 3)
    assert (axes._left_title.get_fontsize(), value.get_fontsize(), axes.xaxis.label.get_fontsize()) == (10, 9, 9)
    assert {label.get_fontsize() for label in axes.get_xticklabels() + axes.get_yticklabels()} == {8}
    assert (value.get_ha(), value.get_va()) == ("right", "bottom")
    assert {grid.get_alpha() for grid in axes.get_xgridlines() + axes.get_ygridlines()} == {0.25}
    assert {name: spine.get_visible() for name, spine in axes.spines.items()} == {
        "left": True, "bottom": True, "top": False, "right": False,
    }  # fmt: skip
    assert axes.get_xlabel() == "epoch"


@pytest.mark.parametrize(("count", "pixels"), [(1, (275, 396)), (5, (550, 1584))])
def test_a_panel_has_so_many_pixels(count: int, pixels: tuple[int, int], tmp_path: Path):
    draw_curves({str(i): [1.0] for i in range(count)}, tmp_path / "x")
    assert imread(tmp_path / "x", "png").shape[:2] == pixels


@pytest.mark.parametrize("columns", [1, 4])
def test_no_title_runs_into_the_last_value(columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    figures = saved(monkeypatch)
    long_name = "amount_right_ventricular_myocardium_with_papillary_muscles_and_trabeculae"
    draw_curves({name: [-0.1234] for name in (*CURVE_TITLES, long_name)}, tmp_path / "x", columns)
    canvas = FigureCanvasAgg(figures[0])
    canvas.draw()
    for axes in [axes for axes in figures[0].axes if axes.axison]:
        title, value = (text.get_window_extent(canvas.get_renderer()) for text in (axes._left_title, axes.texts[0]))
        assert title.x1 + 2 < value.x0, axes.get_title(loc="left")
        assert title.height > 6
        assert value.x1 < axes.bbox.x1 + 1
        assert value.y0 > axes.bbox.y1 - 1


@pytest.mark.parametrize("epochs", [2, 3, 7, 100])
def test_epochs_are_marked_by_a_few_whole_numbers(epochs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    figures = saved(monkeypatch)
    draw_curves({"loss_sup": [1.0] * epochs}, tmp_path / "x")
    marks = figures[0].axes[0].get_xticks()
    assert [mark % 1 for mark in marks] == [0] * len(marks)
    assert 2 <= len(marks) <= 8


@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(3, 4, (1, 3)), (5, 4, (2, 4)), (8, 4, (2, 4)), (0, 4, (1, 1))]
)
def test_panels_fill_rows_of_at_most_so_many_columns(
    count: int, columns: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    figures = saved(monkeypatch)
    draw_curves({str(i): [1.0] for i in range(count)}, tmp_path / "x", columns)
    assert figures[0].axes[0].get_gridspec().get_geometry() == shape
