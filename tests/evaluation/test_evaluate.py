"""evaluation and its command: folders of the host's format against each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from segmentation_folders import ball, three_cases, write, write_dataset_json

from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folder
from nnunetv2_crossmatch.evaluation.metrics import (
    MM_DISTANCE_MEASURES,
    OVERLAP_MEASURES,
    VOXEL_DISTANCE_MEASURES,
    compute_measures,
)
from nnunetv2_crossmatch.evaluation.segmentations import find_reader, read_label_scheme, read_pair

COMMAND = Path(sys.executable).with_name("nnUNetv2_crossmatch_evaluate")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return three_cases(tmp_path)


def one_case(root: Path, reference: np.ndarray, predicted: np.ndarray, labels: dict, **header: object) -> tuple:
    write(root / "data" / "labelsTs" / "a.nii.gz", reference, **header)
    write(root / "predictions" / "a.nii.gz", predicted, **header)
    write_dataset_json(root / "data", labels)
    return root / "data" / "labelsTs", root / "predictions"


def record(folder: Path, **nominal: bool) -> None:
    entries = {case: {"spacing_zyx_mm": [2, 1, 1], "spacing_is_nominal": value} for case, value in nominal.items()}
    (folder / "conversion.json").write_text(json.dumps({"cases": entries}))


def test_the_values_are_those_of_the_measures_with_the_spacing_of_the_header(folders: tuple[Path, Path]) -> None:
    scores = evaluate_folder(*folders)
    shifted = compute_measures(np.roll(ball(), 1, axis=2) == 1, ball() == 1, (2, 1, 1))
    expected = [getattr(shifted, name) for name in scores.measures]
    assert scores.cases == ("a", "b", "c")
    assert scores.measures == (*OVERLAP_MEASURES, *VOXEL_DISTANCE_MEASURES, *MM_DISTANCE_MEASURES)
    np.testing.assert_allclose(scores.values[1, 0], expected, rtol=1e-12)


def test_a_perfect_prediction_has_dice_one_and_distance_zero(folders: tuple[Path, Path]) -> None:
    np.testing.assert_array_equal(evaluate_folder(*folders).values[0, 0], [1, 1, 0, 0, 0, 0])


def test_the_number_of_threads_does_not_change_the_scores(folders: tuple[Path, Path]) -> None:
    one, three = (evaluate_folder(*folders, processes=n) for n in (1, 3))
    np.testing.assert_array_equal(one.values, three.values)


def test_a_given_spacing_replaces_that_of_the_header(folders: tuple[Path, Path]) -> None:
    scores = evaluate_folder(*folders, spacing_mm=(3, 3, 3))
    np.testing.assert_allclose(scores.per_case("body", "hd95_mm"), 3 * scores.per_case("body", "hd95_voxel"))


def test_nominal_spacing_leaves_millimetres_out_with_a_note(folders: tuple[Path, Path]) -> None:
    record(folders[0].parent, a=False, b=True, c=True)
    scores = evaluate_folder(*folders)
    assert scores.measures == (*OVERLAP_MEASURES, *VOXEL_DISTANCE_MEASURES)
    assert "2 of 3 cases is nominal" in scores.notes[0]


def test_a_given_spacing_brings_millimetres_back(folders: tuple[Path, Path]) -> None:
    record(folders[0].parent, a=True, b=True, c=True)
    scores = evaluate_folder(*folders, spacing_mm=(2, 1, 1))
    assert "hd95_mm" in scores.measures
    assert not scores.notes


def test_measured_spacing_in_the_record_keeps_millimetres(folders: tuple[Path, Path]) -> None:
    record(folders[0].parent, a=False, b=False, c=False)
    assert "hd95_mm" in evaluate_folder(*folders).measures


def test_a_region_is_the_union_of_its_labels(tmp_path: Path) -> None:
    reference = ball() + ball(radius=2)
    predicted = ball()
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    scores = evaluate_folder(*one_case(tmp_path, reference, predicted, labels))
    assert scores.classes == ("whole", "core")
    np.testing.assert_array_equal(scores.per_case("whole", "dice"), [1])
    assert scores.empty_mask(0, 1) == "prediction"


def test_voxels_with_the_ignore_label_count_in_neither_mask(tmp_path: Path) -> None:
    reference, predicted = ball(), ball(center=(6, 9, 8))
    reference[predicted != reference] = 2
    scores = evaluate_folder(*one_case(tmp_path, reference, predicted, {"background": 0, "body": 1, "ignore": 2}))
    assert scores.classes == ("body",)
    np.testing.assert_array_equal(scores.values[0, 0], [1, 1, 0, 0, 0, 0])


def test_an_empty_prediction_has_no_distance_and_is_counted(tmp_path: Path) -> None:
    scores = evaluate_folder(*one_case(tmp_path, ball(), 0 * ball(), {"background": 0, "body": 1}))
    np.testing.assert_array_equal(scores.values[0, 0], [0, 0, *[np.nan] * 4])
    assert scores.empty_mask_counts()["body"]["prediction"] == 1


def test_an_empty_prediction_is_zero_in_the_published_convention(tmp_path: Path) -> None:
    folders = one_case(tmp_path, ball(), 0 * ball(), {"background": 0, "body": 1})
    np.testing.assert_array_equal(evaluate_folder(*folders, literature=True).values, np.zeros((1, 1, 6)))


def test_both_empty_is_zero_in_the_published_convention(tmp_path: Path) -> None:
    folders = one_case(tmp_path, 0 * ball(), 0 * ball(), {"background": 0, "body": 1})
    scores = evaluate_folder(*folders, literature=True)
    np.testing.assert_array_equal(scores.values, np.zeros((1, 1, 6)))
    assert scores.empty_mask_counts()["body"]["both"] == 1


def test_both_empty_is_undefined_as_in_the_host(tmp_path: Path) -> None:
    scores = evaluate_folder(*one_case(tmp_path, 0 * ball(), 0 * ball(), {"background": 0, "body": 1}))
    assert np.isnan(scores.values).all()
    assert scores.empty_mask_counts()["body"]["both"] == 1


def test_a_single_slice_is_measured_in_two_dimensions(tmp_path: Path) -> None:
    reference, predicted = ball()[6:7], ball(radius=3)[6:7]
    scores = evaluate_folder(*one_case(tmp_path, reference, predicted, {"background": 0, "body": 1}))
    flat = compute_measures(predicted[0] == 1, reference[0] == 1, (1, 1))
    np.testing.assert_array_equal(scores.values[0, 0], [getattr(flat, name) for name in scores.measures])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_given_spacing_of_a_single_slice_is_that_of_its_own_axes(tmp_path: Path, axis: int) -> None:
    reference, predicted = (np.take(mask, [7], axis=axis) for mask in (ball(center=(7, 8, 8)), ball((7, 8, 8), 3)))
    folders = one_case(tmp_path, reference, predicted, {"background": 0, "body": 1})
    scores = evaluate_folder(*folders, spacing_mm=(4, 2, 1))
    spacing = tuple(np.delete((4, 2, 1), axis))
    flat = compute_measures(predicted.squeeze() == 1, reference.squeeze() == 1, spacing)
    np.testing.assert_array_equal(scores.values[0, 0], [getattr(flat, name) for name in scores.measures])


def test_png_files_are_scored_without_millimetres(tmp_path: Path) -> None:
    for folder in ("labelsTs", "predictions"):
        write(tmp_path / folder / "a.png", ball()[6])
    write_dataset_json(tmp_path, file_ending=".png")
    scores = evaluate_folder(tmp_path / "labelsTs", tmp_path / "predictions")
    assert scores.measures == (*OVERLAP_MEASURES, *VOXEL_DISTANCE_MEASURES)
    assert "no spacing" in scores.notes[0]
    np.testing.assert_array_equal(scores.per_case("body", "dice"), [1])


def test_the_dataset_json_beside_the_predictions_goes_first(folders: tuple[Path, Path]) -> None:
    write_dataset_json(folders[1], {"background": 0, "heart": 1})
    assert evaluate_folder(*folders).classes == ("heart",)


def test_a_linked_reference_folder_keeps_its_data_set(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(folders[0])
    assert evaluate_folder(tmp_path / "elsewhere" / "link", folders[1]).classes == ("body",)


def test_extra_predictions_are_listed_and_not_scored(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "z.nii.gz", ball())
    scores = evaluate_folder(*folders)
    assert (scores.cases, scores.extra) == (("a", "b", "c"), ("z",))


def test_missing_predictions_can_be_allowed_and_are_listed(folders: tuple[Path, Path]) -> None:
    (folders[1] / "b.nii.gz").unlink()
    scores = evaluate_folder(*folders, allow_missing=True)
    assert (scores.cases, scores.missing) == (("a", "c"), ("b",))


def test_rounding_of_the_header_is_no_mismatch(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "a.nii.gz", ball(), (1.00001, 1, 2), origin=(1e-5, 0, 0))
    assert evaluate_folder(*folders).values[0, 0, 0] == 1


def test_a_reader_named_in_dataset_json_is_used(folders: tuple[Path, Path]) -> None:
    file = folders[0].parent / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "overwrite_image_reader_writer": "NibabelIO"}))
    scheme = read_label_scheme(file)
    reader = find_reader(scheme, folders[0] / "a.nii.gz")
    assert type(reader).__name__ == "NibabelIO"
    assert read_pair(folders[1] / "a.nii.gz", folders[0] / "a.nii.gz", reader, scheme).spacing == (2, 1, 1)


def test_hidden_files_and_other_endings_are_no_predictions(folders: tuple[Path, Path]) -> None:
    (folders[1] / "._a.nii.gz").write_bytes(b"")
    (folders[1] / "notes.txt").write_text("")
    assert evaluate_folder(*folders).extra == ()


def test_cases_whose_nominal_spacing_is_not_scored_keep_millimetres(folders: tuple[Path, Path]) -> None:
    record(folders[0].parent, a=False, z=True)
    assert evaluate_folder(*folders).notes == ()


def test_a_record_beside_the_given_dataset_json_counts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    record(tmp_path / "data", b=True)
    scores = evaluate_folder(*folders, dataset_json=write_dataset_json(tmp_path / "data"))
    assert "1 of 3 cases is nominal" in scores.notes[0]


def test_sizes_are_of_prediction_and_reference(folders: tuple[Path, Path]) -> None:
    np.testing.assert_array_equal(evaluate_folder(*folders).voxels[2, 0], [ball(radius=3).sum(), ball().sum()])


def test_without_a_choice_the_distances_of_an_empty_prediction_stay_undefined(tmp_path: Path) -> None:
    scores = evaluate_folder(*one_case(tmp_path, ball(), 0 * ball(), {"background": 0, "body": 1}), literature=False)
    assert not scores.literature
    assert np.isnan(scores.values[0, 0, 2:]).all()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_command_prints_writes_and_can_be_repeated_in_the_same_folder(folders: tuple[Path, Path]) -> None:
    first = run("-r", folders[0], "-p", folders[1], "-np", 2)
    assert first.returncode == 0, first.stderr
    assert "95HD mm" in first.stdout
    assert "3/3" in first.stderr
    assert {file.name for file in folders[1].glob("scores.*")} == {"scores.csv", "scores.json", "scores.md"}
    second = run("-r", folders[0], "-p", folders[1], "-np", 2)
    assert second.stdout == first.stdout


def test_the_command_compares_two_folders_and_writes_where_it_is_told(folders: tuple[Path, Path]) -> None:
    out = folders[1].parent / "new" / "scores"
    done = run("-r", folders[0], "-p", folders[1], "--compare", folders[0], "-o", out, "--spacing", 2, 1, 1)
    assert done.returncode == 0, done.stderr
    assert "Wilcoxon p" in done.stdout
    difference = json.loads((out / "scores.json").read_text())["difference"]["body"]["dice"]
    assert difference["pairs"] == 3
    assert difference["mean"] < 0
    assert not list(folders[1].glob("scores.*"))


def test_help_shows_an_example_and_single_percent_signs() -> None:
    text = run("--help").stdout
    assert "nnUNetv2_crossmatch_evaluate -r $nnUNet_raw/Dataset501_LA/labelsTs -p predictions" in text
    assert "95 % bootstrap interval" in text
