"""The bars of several tasks: which scores they show, and what is not there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from benchmarks.protocol import figure
from nnunetv2_crossmatch.errors import InputError

ROOT = Path(__file__).parents[2]


def results(folder: Path, **rows: list[float]) -> Path:
    """A folder of results with the Dice of each run of each row."""
    runs = {row: {"runs": [{"strict": {"dice": dice}} for dice in values]} for row, values in rows.items()}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"rows": runs}))
    return folder


def test_seeds_of_several_folders_are_put_together(tmp_path):
    folders = [results(tmp_path / "a", first=[0.5], second=[0.7]), results(tmp_path / "b", first=[0.6, 0.4])]
    assert figure.dice_of(folders, "first") == [0.5, 0.6, 0.4]
    assert figure.dice_of(folders, "second") == [0.7]
    assert figure.dice_of(folders, "third") == []


def test_bars_begin_at_zero_have_their_mean_above_and_a_dot_per_seed():
    drawn = figure.draw({"one": {"a": [0.5, 0.75], "b": [0.25]}, "two": {"a": [], "b": [1.0]}})
    one, two = drawn.axes
    assert [(bar.get_y(), bar.get_height()) for bar in one.patches] == [(0, 0.625), (0, 0.25)]
    assert [text.get_text() for text in one.texts] == [".625", ".250"]
    assert one.collections[0].get_offsets().tolist() == [[0, 0.5], [0, 0.75]]
    assert [text.get_text() for text in two.texts] == ["not measured", "1.000"]
    assert one.get_ylim() == two.get_ylim() == (0, 1.05)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_command_writes_a_figure(tmp_path, monkeypatch, ending):
    folder, file = results(tmp_path / "a", first=[0.5]), tmp_path / f"figure.{ending}"
    words = ["-o", file, "--row", "the first", "first", "--task", "a task", folder, "--task", "another", folder]
    monkeypatch.setattr(sys, "argv", ["figure.py", *map(str, words)])
    figure.main()
    if ending == "svg":
        assert "another" in file.read_text()
    else:
        assert imread(file).std() > 0.05


@pytest.mark.parametrize(
    ("rows", "told"), [(7, r"too many rows: 7\. Fix: give 6 at most"), (1, "file missing in .*results.json")]
)
def test_more_rows_than_colours_and_a_folder_without_results_are_told(tmp_path, monkeypatch, rows, told):
    words = ["-o", "f.png", *["--row", "a", "b"] * rows, "--task", "a", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["figure.py", *words])
    with pytest.raises(InputError, match=told):
        figure.main()


def test_the_documented_figure_shows_every_row_of_every_task(monkeypatch, tmp_path):
    """The command of the results page; the picture beside it is not compared, since fonts differ."""
    text = (ROOT / "docs" / "results.md").read_text()
    (command,) = re.findall(r"^    python -m benchmarks\.protocol\.figure ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    _, picture, *arguments = shlex.split(command.replace("\\\n", ""))
    assert (ROOT / picture).is_file()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["figure", "-o", str(tmp_path / "figure.svg"), *arguments])
    figure.main()
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(title in drawn for title in ("ACDC, 3", "LA, 8", "hippocampus, 2", "nuclei, 3", "all images labeled"))
    assert "not measured" not in drawn
