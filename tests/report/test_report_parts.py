"""report: numbers, texts and files of a page, without rendering it."""

from __future__ import annotations

import base64
import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segmentation_folders import ball, write, write_dataset_json

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.evaluate import EvaluationOptions, conversion_record_files
from nnunetv2_crossmatch.evaluation.scores import Difference, Scores, bootstrap_interval
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, PredictionLabels
from nnunetv2_crossmatch.report import case_pictures
from nnunetv2_crossmatch.report import page as report_page
from nnunetv2_crossmatch.report.build import (
    case_entry,
    check_output_file,
    dataset_title,
    prediction_names,
    read_conversion_record,
    sort_by_dice,
)
from nnunetv2_crossmatch.report.case_pictures import (
    CaseFiles,
    case_reader,
    data_uri,
    draw_case_surfaces,
    draw_slice_picture,
    draw_slices,
    find_case_files,
    read_case,
    viewer_commands,
)
from nnunetv2_crossmatch.report.contours import CaseVolumes
from nnunetv2_crossmatch.report.model_record import FoldRecord, ModelRecord
from nnunetv2_crossmatch.report.page import (
    CaseEntry,
    ReportContent,
    draw_training_curves,
    format_difference,
    headline_numbers,
    make_comparison_section,
    make_summary_rows,
)

NAN = float("nan")
VOXEL = ("dice", "jaccard", "hd95_voxel", "asd_voxel")
VALUES = [
    [[0.9, 0.8, 3.0, 1.0], [0.7, 0.6, 5.0, 2.0]],
    [[0.5, 0.4, 9.0, 4.0], [0.0, 0.0, NAN, NAN]],
    [[NAN] * 4, [NAN] * 4],
]
SIZES = [[[5, 5], [5, 5]], [[5, 5], [0, 5]], [[0, 0], [0, 0]]]
INTERVAL = " to ".join(f"{value:.4f}" for value in bootstrap_interval(np.array([0.8, 0.25])))


def scores(change: float = 0.0, measures: tuple[str, ...] = VOXEL, cases: str = "abc") -> Scores:
    """Case a is good, b lacks the prediction of LV, c is empty on both sides."""
    values = np.array(VALUES)
    values[..., 0] += change
    values = np.concatenate((values, 2 * values[..., 2:]), axis=2)[..., : len(measures)]
    return Scores(tuple(cases), ("RV", "LV"), measures, values, np.array(SIZES))


def scheme(classes: dict[str, tuple[int, ...]] | None = None) -> LabelScheme:
    return LabelScheme(".nii.gz", classes or {"body": (1,)}, None, {"file_ending": ".nii.gz"})


def make_case_files(
    root: Path, predictions: str = "p", images: str | None = None, content: dict[str, str] | None = None
) -> CaseFiles:
    """Case x in the folders ``r`` (reference), one per letter of ``predictions``, and ``images``; no file exists."""
    pairs = {name: {"x": (root / name / "x.nii.gz", root / "r" / "x.nii.gz")} for name in predictions}
    labels = PredictionLabels(LabelScheme(".nii.gz", {"body": (1,)}, None, content or {}))
    folders = {name: root / name for name in predictions}
    return CaseFiles(root / "r", folders, root / images if images else None, pairs, dict.fromkeys(predictions, labels))


def report_content(other: Scores | None = None) -> ReportContent:
    found = {"mine": scores(), **({"supervised": other} if other else {})}
    return ReportContent("title", found, make_case_files(Path()), None, None)


def picture(reference: np.ndarray, prediction: np.ndarray, **more: np.ndarray) -> CaseVolumes:
    image = np.zeros(reference.shape, np.float32)
    return CaseVolumes("case", image, reference, {"mine": prediction, **more}, (2.0, 1.0, 1.0))


def test_cases_with_the_lowest_mean_dice_come_first_and_undefined_ones_last():
    assert sort_by_dice(scores(cases="zyx")) == ["y", "z", "x"]


def test_cases_of_equal_dice_come_by_name():
    equal = Scores(("b", "a"), ("A",), ("dice",), np.full((2, 1, 1), 0.5), np.ones((2, 1, 2), int))
    assert sort_by_dice(equal) == ["a", "b"]


def test_a_case_has_the_dice_of_its_classes_and_mean_distances():
    cells = {"Dice RV": "0.5000", "Dice LV": "0.0000", "95HD voxel": "9.00", "ASD voxel": "4.00"}
    assert case_entry(scores(), "b", 7, {}) == CaseEntry(7, "b", 0.25, cells, ("LV: prediction empty",))


def test_distances_of_a_case_are_in_mm_where_these_are_known():
    cells = case_entry(scores(measures=(*VOXEL, "hd95_mm", "asd_mm")), "a", 1, {}).cells
    assert list(cells.items())[2:] == [("95HD mm", "8.00"), ("ASD mm", "3.00")]


def test_a_case_of_a_single_class_has_no_column_for_its_dice():
    one = Scores(("a",), ("A",), ("dice", "hd95_voxel"), np.array([[[0.5, 2.0]]]), np.array([[[3, 0]]]))
    entry = case_entry(one, "a", 1, {})
    assert (entry.cells, entry.empty_mask_notes) == ({"95HD voxel": "2.00"}, ("A: reference empty",))


def test_of_many_classes_a_case_shows_four():
    names = tuple("ABCDEF")
    many = Scores(("a",), names, ("dice", "hd95_voxel"), np.full((1, 6, 2), 0.5), np.ones((1, 6, 2), int))
    assert list(case_entry(many, "a", 1, {}).cells) == ["Dice A", "Dice B", "Dice C", "Dice D", "95HD voxel"]


def test_the_headline_has_the_means_over_classes_and_cases():
    dice, distance, surface = headline_numbers(report_content())
    assert dice == {"label": "Dice", "mean": "0.5250", "interval": f"95 % interval {INTERVAL}", "difference": ""}
    assert (distance["label"], distance["mean"]) == ("95HD voxel", "6.50")
    assert (surface["label"], surface["mean"]) == ("ASD voxel", "2.75")


def test_the_headline_contains_the_difference_to_the_other_predictions():
    assert headline_numbers(report_content(scores(-0.1)))[0]["difference"].startswith("+0.1000 (")


@pytest.mark.parametrize(
    ("mean", "text"), [(0.1, "+0.1000 (0.0500 to 0.2000)"), (-0.1, "-0.1000 (0.0500 to 0.2000)"), (0, "0.0000 (")]
)
def test_a_difference_has_its_sign(mean, text):
    assert format_difference(Difference(3, mean, 0.05, 0.2, 0.5), "dice").startswith(text)


def test_the_summary_has_mean_interval_spread_and_count_of_each_class():
    rows = dict(make_summary_rows(scores()))
    low, high = bootstrap_interval(np.array([0.9, 0.5]))
    assert list(rows) == ["RV", "LV", "mean of classes"]
    assert rows["RV"]["Dice"] == {
        "mean": "0.7000", "interval": f"{low:.4f} to {high:.4f}", "sd": "0.2828", "cases": "2"
    }  # fmt: skip
    assert (rows["LV"]["95HD voxel"]["mean"], rows["LV"]["95HD voxel"]["cases"]) == ("5.00", "1")
    assert rows["LV"]["95HD voxel"]["interval"] == ""


def test_the_comparison_is_these_minus_the_others(monkeypatch):
    monkeypatch.setattr(report_page, "draw_for_both_widths", lambda draw: draw.args)
    other = scores(0.1)
    found = make_comparison_section(report_content(other))
    assert (found["other"], found["columns"][:4]) == ("supervised", ("class", "measure", "pairs", "difference"))
    assert found["rows"][0][:4] == ("RV", "Dice", "2", "-0.1000")
    assert found["rows"][-1][0] == "mean of classes"
    assert [name for name, _ in found["chart"]] == ["mine", "supervised"]


def test_there_is_no_comparison_without_other_predictions():
    assert make_comparison_section(report_content()) is None


def test_curves_are_drawn_only_for_folds_with_curves(monkeypatch):
    monkeypatch.setattr(report_page, "drawn_file_uri", lambda draw, ending: (draw.args, draw.keywords, ending))
    folds = [FoldRecord(f"fold_{i}", "c", 3, 1.0, {"loss": [1.0]} if i else {}) for i in range(2)]
    model = ModelRecord(Path("m"), "t", {}, (), tuple(folds))
    wide, narrow = [(({"loss": [1.0]},), {"columns": columns}, "png") for columns in (4, 1)]
    assert draw_training_curves(model) == [(folds[1], {"wide": wide, "narrow": narrow, "inches": 10})]
    assert draw_training_curves(None) == []


@pytest.mark.parametrize(
    ("folder", "content", "title"),
    [("Dataset007_X", {"name": "Y"}, "Dataset007_X"), ("x", {"name": "Y"}, "Y"), ("x", {}, "x")],
)
def test_the_title_is_the_name_of_the_data_set(tmp_path, folder, content, title):
    assert dataset_title(make_case_files(tmp_path, content=content), tmp_path / folder / "dataset.json") == title
    assert dataset_title(make_case_files(tmp_path / folder, content=content), None) == title


def test_the_first_conversion_record_counts(tmp_path):
    def read():
        files = conversion_record_files(tmp_path / "a" / "labelsTs", tmp_path / "b" / "dataset.json")
        return read_conversion_record(files[0]) if files else None

    assert read() is None
    for name in "ba":
        (tmp_path / name).mkdir()
        (tmp_path / name / "conversion.json").write_text(json.dumps({"cases": {}, "command": name}))
        assert read() == {"cases": {}, "command": name}


def test_a_report_cannot_replace_a_folder(tmp_path):
    check_output_file(tmp_path / "report.html")
    with pytest.raises(InputError, match=r"report not written in .*: is a folder\. Fix: give a file"):
        check_output_file(tmp_path)


def test_one_set_of_predictions_has_the_name_of_its_folder(tmp_path):
    assert prediction_names(tmp_path / "preds", None) == {"preds": tmp_path / "preds"}


def test_predictions_keep_their_order_and_folders(tmp_path):
    first, second = tmp_path / "b", tmp_path / "a"
    assert list(prediction_names(first, second).items()) == [("b", first), ("a", second)]


def test_files_of_a_case_are_the_reference_then_the_predictions():
    case_files = make_case_files(Path(), "pq", "i")
    assert case_files.reference_file("x") == Path("r/x.nii.gz")
    assert list(case_files.prediction_files("x").items()) == [("p", Path("p/x.nii.gz")), ("q", Path("q/x.nii.gz"))]
    segmentations = shlex.split(viewer_commands("x", case_files)["ITK-SNAP 4"])[4:]
    assert segmentations == [str(Path(file).resolve()) for file in ("r/x.nii.gz", "p/x.nii.gz", "q/x.nii.gz")]
    assert case_files.image("x") == Path("i/x_0000.nii.gz")


def test_a_missing_folder_of_images_is_one_problem(tmp_path):
    case_files = make_case_files(tmp_path, images="no")
    (problem,) = case_files.missing_image_problems("ab")
    assert (problem.what, problem.where, problem.fix) == ("folder missing", tmp_path / "no", "check -i")


def test_without_an_image_folder_no_image_is_missing(tmp_path):
    assert make_case_files(tmp_path).missing_image_problems("ab") == []


def test_slice_pictures_name_the_slice_and_the_predictions_with_the_most_errors(monkeypatch):
    monkeypatch.setattr(case_pictures, "draw_slice_picture", lambda case, index: f"drawn {index}")
    reference = ball().astype(np.int32)
    wrong, other = reference.copy(), reference.copy()
    wrong[3], other[8] = 1, 1
    found = {
        picture_of_slice.uri: picture_of_slice
        for picture_of_slice in draw_slices(picture(reference, wrong, other=other))
    }
    assert (found["drawn 3"].caption, found["drawn 3"].most_errors_of) == ("slice 4 of 12", ("mine",))
    assert found["drawn 8"].most_errors_of == ("other",)
    assert sum(bool(picture_of_slice.most_errors_of) for picture_of_slice in found.values()) == 2


def test_a_slice_picture_has_the_aspect_ratio_of_the_case():
    uri = draw_slice_picture(picture(*np.repeat(ball((6, 4, 8), 3, (12, 9, 40))[None].astype(np.int32), 2, axis=0)), 6)
    width, height = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size
    assert uri.startswith("data:image/webp;base64,")
    assert width == 330
    assert height == pytest.approx(330 * 9 / 15, abs=2)


def test_a_slice_picture_is_filled_by_the_slice_without_axes(monkeypatch):
    monkeypatch.setattr(case_pictures, "figure_uri", lambda figure, dpi, **webp: (figure, dpi, webp))
    figure, dpi, webp = draw_slice_picture(picture(ball().astype(np.int32), ball().astype(np.int32)), 6)
    (axes,) = figure.axes
    assert axes.get_position(original=True).bounds == (0, 0, 1, 1)
    assert (axes.axison, dpi, webp) == (False, 150, {"quality": 70})


def surfaces(monkeypatch: pytest.MonkeyPatch, reference: np.ndarray, prediction: np.ndarray, count: int) -> list[str]:
    """Classes that get a picture; class i has the label i + 1."""
    monkeypatch.setattr(case_pictures, "drawn_file_uri", lambda draw, ending: ending)
    classes = {f"class{i}": (i + 1,) for i in range(count)}
    return list(draw_case_surfaces(picture(reference, prediction), scheme(classes), "mm"))


def test_an_empty_class_has_no_surface_but_a_missed_one_has(monkeypatch):
    reference = np.zeros((4, 4, 4), np.int32)
    prediction = reference.copy()
    reference[1], prediction[2] = 1, 3
    assert surfaces(monkeypatch, reference, prediction, 3) == ["class0", "class2"]


def test_a_single_slice_has_no_surface(monkeypatch):
    assert surfaces(monkeypatch, np.ones((1, 4, 4), np.int32), np.ones((1, 4, 4), np.int32), 1) == []


def test_two_slices_have_a_surface(monkeypatch):
    assert surfaces(monkeypatch, np.ones((2, 4, 4), np.int32), np.ones((2, 4, 4), np.int32), 1) == ["class0"]


def test_of_many_classes_the_six_with_the_most_wrong_voxels_are_shown_in_order(monkeypatch):
    reference = np.repeat(np.arange(1, 9), 16).reshape(8, 4, 4).astype(np.int32)
    prediction = reference.copy()
    prediction[2:, 0] = 0
    prediction[4:, 1] = 0
    assert surfaces(monkeypatch, reference, prediction, 8) == [f"class{i}" for i in range(2, 8)]


def test_surfaces_are_drawn_in_the_size_and_unit_of_the_case(monkeypatch):
    calls = []
    monkeypatch.setattr(case_pictures, "draw_surfaces", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(case_pictures, "drawn_file_uri", lambda draw, ending: draw(Path("file")))
    reference, prediction = ball().astype(np.int32), ball(radius=3).astype(np.int32)
    draw_case_surfaces(picture(reference, prediction), scheme(), "nominal mm")
    ((masks, *rest),) = calls
    assert rest == [(2.0, 1.0, 1.0), Path("file"), "nominal mm"]
    np.testing.assert_array_equal(masks["body"], [reference == 1, prediction == 1])


@pytest.fixture
def files(tmp_path: Path) -> CaseFiles:
    """A case whose reference has the ignore label 2 in one corner, with an image of ones; spacing (z, y, x) 2, 1, 1."""
    reference = ball()
    reference[:2, :2, :2] = 2
    write(tmp_path / "r" / "x.nii.gz", reference)
    write(tmp_path / "p" / "x.nii.gz", np.ones_like(reference))
    write(tmp_path / "i" / "x_0000.nii.gz", np.ones(reference.shape, np.float32))
    write_dataset_json(tmp_path, {"background": 0, "body": 1, "ignore": 2})
    return find_case_files(tmp_path / "r", {"p": tmp_path / "p"}, tmp_path / "i")


def test_ignored_voxels_are_background_in_the_pictures(files):
    found = read_case("x", files, case_reader(files))
    np.testing.assert_array_equal(found.reference, ball())
    assert (found.predictions["p"] == 0).sum() == 8
    assert found.image.min() == 1


def test_a_drawn_case_has_the_spacing_of_its_header(files):
    assert read_case("x", files, case_reader(files)).spacing == (2.0, 1.0, 1.0)


def test_a_given_spacing_replaces_the_header_in_the_pictures(files):
    options = EvaluationOptions(spacing_mm=(3, 4, 5))
    given = find_case_files(files.reference, files.predictions, None, options=options)
    found = read_case("x", given, case_reader(given))
    assert found.spacing == (3.0, 4.0, 5.0)
    assert not found.image.any()


def test_viewers_open_the_image_with_all_segmentations(tmp_path):
    case_files = make_case_files(tmp_path, images="i")
    image, reference, predicted = (str(tmp_path / name) for name in ("i/x_0000.nii.gz", "r/x.nii.gz", "p/x.nii.gz"))
    commands = viewer_commands("x", case_files)
    assert shlex.split(commands["ITK-SNAP 4"]) == ["itksnap", "-g", image, "-s", reference, predicted]
    loads = f"loadVolume({image!r})", f"loadSegmentation({reference!r})", f"loadSegmentation({predicted!r})"
    assert shlex.split(commands["3D Slicer"])[2] == "; ".join(f"slicer.util.{load}" for load in loads)


def test_viewers_open_the_reference_where_there_is_no_image(tmp_path):
    command = viewer_commands("x", make_case_files(tmp_path))["ITK-SNAP 4"]
    assert shlex.split(command)[2] == str(tmp_path / "r" / "x.nii.gz")


def test_a_data_uri_holds_the_content():
    assert data_uri(b"content", "png") == "data:image/png;base64,Y29udGVudA=="
