"""score_files: content of the tables and files."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.score_files import (
    format_for_terminal,
    format_markdown_table,
    format_text_table,
    make_case_table,
    make_difference_table,
    make_summary_table,
    score_notes,
    scores_as_json,
    scores_as_markdown,
    write_scores,
)
from nnunetv2_crossmatch.evaluation.scores import Difference, Scores

NAN = float("nan")
ORIGIN = {"reference": "labelsTs", "predictions": "predictions"}


def example(**more: object) -> Scores:
    values = np.array([[[0.91234, 5.0], [NAN, NAN]], [[0.5, 7.25], [0.0, NAN]]])
    voxels = np.array([[[10, 11], [0, 0]], [[5, 6], [0, 4]]])
    return Scores(("p1", "p2"), ("RV", "LV"), ("dice", "hd95_voxel"), values, voxels, **more)


def test_the_table_is_aligned() -> None:
    assert format_text_table(make_case_table(example())).splitlines()[2:] == [
        "case  class    Dice  95HD voxel             empty",
        "----  -----  ------  ----------  ----------------",
        "p1    RV     0.9123        5.00",
        "p1    LV          -           -        both empty",
        "p2    RV     0.5000        7.25",
        "p2    LV     0.0000           -  prediction empty",
    ]


def test_markdown_has_one_line_per_case_and_class() -> None:
    rows = [line for line in format_markdown_table(make_case_table(example())).splitlines() if line.startswith("| p")]
    assert len(rows) == 4
    assert rows[0].startswith("| p1 | RV | 0.9123 | 5.00 |")


def test_the_terminal_shows_the_rows_with_the_lowest_dice() -> None:
    table = make_case_table(example(), limit=2)
    assert [row[:2] for row in table.rows] == [("p1", "LV"), ("p2", "LV")]
    assert "scores.csv" in table.title


def test_without_empty_masks_there_is_no_column_for_them() -> None:
    full = Scores(("a",), ("RV",), ("dice",), np.ones((1, 1, 1)), np.ones((1, 1, 2), int))
    table = make_case_table(full)
    assert (table.columns, table.rows) == (("case", "class", "Dice"), (("a", "RV", "1.0000"),))


def test_the_terminal_shows_all_rows_in_order_up_to_the_limit() -> None:
    assert make_case_table(example(), limit=4) == make_case_table(example())


def test_the_summary_contains_counts_mean_spread_and_interval() -> None:
    table = make_summary_table(example())
    assert table.rows[1] == ("RV", "95HD voxel", "2", "0", "6.12", "1.59", "5.00 to 7.25")
    assert table.rows[2] == ("LV", "Dice", "1", "1", "0.0000", "-", "-")
    assert (len(table.columns), table.text_columns) == (7, 2)


@pytest.mark.parametrize(("p_value", "text"), [(0.034567, "0.035"), (NAN, "-")])
def test_a_difference_contains_pairs_mean_interval_and_p_value(p_value: float, text: str) -> None:
    table = make_difference_table({"RV": {"dice": Difference(3, -0.1, -0.2, 0.05, p_value)}}, Path("other"))
    assert table.rows == (("RV", "Dice", "3", "-0.1000", "-0.2000 to 0.0500", text),)
    assert table.title == "Difference: these predictions minus other"


def test_scores_without_remarks_tell_the_amount_of_each_class() -> None:
    voxels = np.array([[[3, 2], [0, 0]], [[3, 6], [5, 0]]])
    full = Scores(("a", "b"), ("RV", "LV"), ("dice",), np.ones((2, 2, 1)), voxels)
    assert full.amounts()["RV"] == 0.75
    assert score_notes(full)[0] == "Amount, voxels predicted per voxel of the reference over all cases: RV 0.75, LV -."
    assert scores_as_json(full, ORIGIN)["amounts"] == {"RV": 0.75, "LV": None}


def test_remarks_come_in_order() -> None:
    found = score_notes(example(literature=True, notes=("a note",), missing=("m", "n"), extra=("x",)))
    assert [line.split()[0] for line in found] == ["Published", "a", "Amount,", "Empty", "Not", "Not"]


def test_the_markdown_names_the_origin_and_ends_with_every_case() -> None:
    text = scores_as_markdown(example(), ORIGIN, None, None)
    assert text.startswith("# Scores\n\n- reference: `labelsTs`\n- predictions: `predictions`\n\n## Mean over cases\n")
    assert "| --- | --- | ---: | ---: | ---: | ---: | ---: |" in text
    assert text.endswith("| p2 | LV | 0.0000 | - | prediction empty |\n")


def test_the_difference_is_printed_only_with_another_folder() -> None:
    assert "Difference" not in format_for_terminal(example()) + format_for_terminal(example(), example())
    assert "Difference: these predictions minus other" in format_for_terminal(example(), example(), Path("other"))


def test_the_json_contains_method_convention_and_missing_cases(tmp_path: Path) -> None:
    paths = write_scores(example(missing=("m",), extra=("x",), notes=("a note",)), tmp_path / "new", ORIGIN)
    content = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert [path.name for path in paths] == ["scores.csv", "scores.json", "scores.md"]
    interval = {"method": "BCa bootstrap over cases", "confidence": 0.95, "resamples": 9999, "seed": 0}
    assert content["interval"] == interval
    assert [content[key] for key in ("missing_predictions", "extra_predictions", "notes")] == [["m"], ["x"], ["a note"]]
    assert content["convention"] == "an empty mask has no distance"
    assert content["empty_masks"]["LV"] == {"prediction": 1, "reference": 0, "both": 1}
    assert "difference" not in content


def test_the_json_names_the_published_convention(tmp_path: Path) -> None:
    write_scores(example(literature=True), tmp_path, ORIGIN)
    assert json.loads((tmp_path / "scores.json").read_text())["convention"].startswith("literature")


def test_empty_masks_missing_and_extra_cases_stand_below_the_table() -> None:
    text = format_for_terminal(example(missing=("p3",), extra=("p9",)))
    assert "Empty masks of LV: 1 x prediction, 1 x both." in text
    assert "no prediction (1): p3." in text
    assert "no reference (1): p9." in text


def test_the_published_convention_is_named() -> None:
    assert "Published convention" in format_for_terminal(example(literature=True))


def test_a_vertical_bar_or_line_break_in_a_class_name_starts_no_column_or_row(tmp_path: Path) -> None:
    table = make_case_table(replace(example(), classes=("R|V", "L\nV")))
    rows = format_markdown_table(table).splitlines()[4:]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6] * 4
    assert len(format_text_table(table).splitlines()) == 4 + 4


def test_a_class_name_is_no_formula_in_the_csv(tmp_path: Path) -> None:
    write_scores(replace(example(), classes=("=1+1", "LV")), tmp_path, ORIGIN)
    with (tmp_path / "scores.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["'=1+1", "LV"] * 2


def test_the_csv_leaves_undefined_fields_empty(tmp_path: Path) -> None:
    write_scores(example(), tmp_path, ORIGIN)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["dice"] == "0.91234"
    assert (rows[1]["dice"], rows[1]["empty"]) == ("", "both")
    assert (rows[3]["prediction_voxels"], rows[3]["reference_voxels"]) == ("0", "4")


def test_the_json_is_strict_and_has_null_for_undefined(tmp_path: Path) -> None:
    write_scores(example(), tmp_path, ORIGIN, example(), Path("other"))
    content = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert content["cases"]["p1"]["LV"] == {
        "dice": None, "hd95_voxel": None, "prediction_voxels": 0, "reference_voxels": 0, "empty": "both"
    }  # fmt: skip
    assert content["summary"]["RV"]["hd95_voxel"]["mean"] == 6.125
    assert content["summary"]["LV"]["dice"] == {
        "defined": 1, "undefined": 1, "mean": 0.0, "std": None, "low": None, "high": None
    }  # fmt: skip
    assert content["difference"]["minus"] == "other"
    assert content["difference"]["RV"]["dice"]["mean"] == 0
    assert content["reference"] == "labelsTs"


def test_letters_beyond_ascii_are_written_alike_in_every_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")  # as in locale C
    paths = write_scores(replace(example(), classes=("Ventrikel, größer", "LV")), tmp_path / "made" / "for", ORIGIN)
    write_scores(replace(example(), classes=("Ventrikel, größer", "LV")), tmp_path / "made" / "for", ORIGIN)  # again
    contents = [path.read_bytes().decode() for path in paths]
    assert ["größer" in content for content in contents] == [True, False, True]  # JSON has no letters beyond ASCII
    assert json.loads(contents[1])["summary"].keys() >= {"Ventrikel, größer"}
    assert contents[1].splitlines()[1].startswith('  "written_by"')


def test_a_fault_while_writing_keeps_all_three_old_files(tmp_path: Path) -> None:
    (tmp_path / "scores.md").mkdir()
    old = {name: tmp_path / name for name in ("scores.csv", "scores.json")}
    for file in old.values():
        file.write_text("old")
    with pytest.raises(InputError, match="scores not written"):
        write_scores(example(), tmp_path, ORIGIN)
    assert [file.read_text() for file in old.values()] == ["old", "old"]
    assert {file.name for file in tmp_path.iterdir()} == {"scores.csv", "scores.json", "scores.md"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="scores not written") as caught:
        write_scores(example(), tmp_path / "file", ORIGIN)
    assert "-o" in str(caught.value)
