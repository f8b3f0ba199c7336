"""evaluation and its command: folders of the host's format against each other."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_bar
from segmentation_folders import ball, three_cases, write, write_dataset_json

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folder, evaluate_folders
from nnunetv2_crossmatch.evaluation.metrics import (
    MM_DISTANCE_MEASURES,
    OVERLAP_MEASURES,
    VOXEL_DISTANCE_MEASURES,
    compute_measures,
)
from nnunetv2_crossmatch.evaluation.scores import compare_scores
from nnunetv2_crossmatch.evaluation.segmentations import PredictionLabels, find_reader, read_label_scheme, read_pair

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
    scores = evaluate_folder(*folders, literature=True)
    np.testing.assert_array_equal(scores.values, np.zeros((1, 1, 6)))
    assert scores.voxels.dtype.kind == "i"  # counts; the reader of the file refuses others
    assert scores.literature  # which the files and tables say


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


def test_the_dataset_json_in_the_predictions_folder_is_enough(folders: tuple[Path, Path]) -> None:
    (folders[0].parent / "dataset.json").rename(folders[1] / "dataset.json")
    assert evaluate_folder(*folders).classes == ("body",)


def two_class_folders(root: Path, swapped: str = "predictions") -> tuple[Path, Path]:
    """Perfect predictions of two structures; the folder ``swapped`` has the label numbers 1 and 2 exchanged."""
    labels = ball() + ball(radius=2)
    numbers = {name: np.array([0, 2, 1] if name == swapped else [0, 1, 2], np.uint8) for name in ("r", "predictions")}
    write(root / "data" / "labelsTs" / "a.nii.gz", numbers["r"][labels])
    write(root / "predictions" / "a.nii.gz", numbers["predictions"][labels])
    write_dataset_json(root / "data", {"background": 0, "shell": 1, "core": 2})
    return root / "data" / "labelsTs", root / "predictions"


def test_label_numbers_that_differ_between_both_files_are_mapped_by_class_name(tmp_path: Path) -> None:
    reference, predictions = two_class_folders(tmp_path)
    write_dataset_json(predictions, {"background": 0, "core": 1, "shell": 2})
    scores = evaluate_folder(reference, predictions)
    assert scores.classes == ("shell", "core")
    np.testing.assert_array_equal(scores.values[0, :, 0], [1, 1])
    assert "mapped by the names of the classes: shell 2, core 1 in" in scores.notes[0]


def test_regions_with_other_label_numbers_are_mapped_by_their_parts(tmp_path: Path) -> None:
    reference, predictions = two_class_folders(tmp_path)
    write_dataset_json(reference.parent, {"background": 0, "whole": [1, 2], "core": [2]})
    write_dataset_json(predictions, {"background": 0, "whole": [1, 2], "core": [1]})
    np.testing.assert_array_equal(evaluate_folder(reference, predictions).values[0, :, 0], [1, 1])


@pytest.mark.parametrize("labels", [{"heart": 1}, {"body": 1, "core": 2}, {"body": [1, 2], "core": 2}])
def test_other_class_names_than_those_of_the_reference_are_refused(folders: tuple[Path, Path], labels: dict) -> None:
    write_dataset_json(folders[1], {"background": 0, **labels})
    with pytest.raises(InputError, match=r"classes differ in .*body 1 in .*-djfile"):
        evaluate_folder(*folders)


def test_a_given_dataset_json_replaces_other_class_names_with_a_note(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    write_dataset_json(folders[1], {"background": 0, "heart": 1})
    scores = evaluate_folder(*folders, write_dataset_json(tmp_path / "given", {"background": 0, "organ": 1}))
    assert scores.classes == ("organ",)
    assert len(scores.notes) == 2


def test_two_folders_with_classes_in_another_order_are_compared(tmp_path: Path, capsys) -> None:
    reference, predictions = two_class_folders(tmp_path)
    (reference.parent / "dataset.json").unlink()
    for folder, labels in ((predictions, {"core": 1, "shell": 2}), (tmp_path / "same", {"shell": 2, "core": 1})):
        write(folder / "a.nii.gz", np.array([0, 2, 1], np.uint8)[ball() + ball(radius=2)])
        write_dataset_json(folder, {"background": 0, **labels})
    write(reference / "a.nii.gz", np.array([0, 2, 1], np.uint8)[ball() + ball(radius=2)])
    first, second = evaluate_folders(reference, [predictions, tmp_path / "same"])
    assert_bar(capsys.readouterr().err, "evaluate", 1)
    assert compare_scores(first, second)["foreground_mean"]["dice"].mean == 0


def nominal_reference(folder: Path) -> Path:
    """The reference of case a as a converter writes it: with the mark of a nominal spacing in its header."""
    file = folder / "a.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[148:228] = b"crossmatch: nominal spacing".ljust(80, b"\0")
    file.write_bytes(gzip.compress(content))
    return folder


def test_a_copied_reference_with_nominal_spacing_has_no_millimetres(folders: tuple[Path, Path], tmp_path: Path) -> None:
    copied = shutil.copytree(nominal_reference(folders[0]), tmp_path / "copy" / "labels")
    scores = evaluate_folder(copied, folders[1], folders[0].parent / "dataset.json")
    assert scores.measures == (*OVERLAP_MEASURES, *VOXEL_DISTANCE_MEASURES)
    assert "1 of 3 cases is nominal in the files' headers" in scores.notes[0]


def test_the_conversion_record_is_found_by_the_name_of_the_data_set(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw" / folders[0].parent.name
    raw.mkdir(parents=True)
    record(raw, a=True, b=True, c=True)
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    assert "hd95_mm" not in evaluate_folder(*folders).measures


def rename_all(folder: Path, suffix: str) -> None:
    for file in folder.glob("*.nii.gz"):
        file.rename(file.with_name(file.name.replace(".nii.gz", f"{suffix}.nii.gz")))


@pytest.mark.parametrize(("reference", "predictions"), [("_seg", ""), ("", "_0000"), ("_seg", ".pred")])
def test_suffixes_in_file_names_are_offered_and_removed(
    folders: tuple[Path, Path], reference: str, predictions: str
) -> None:
    rename_all(folders[0], reference)
    rename_all(folders[1], predictions)
    suffixes = [suffix for suffix in (reference, predictions) if suffix]
    with pytest.raises(InputError, match=f"3 are equal.*add {' '.join(f'--suffix={one}' for one in suffixes)}"):
        evaluate_folder(*folders)
    assert evaluate_folder(*folders, suffixes=suffixes).cases == ("a", "b", "c")


def test_two_files_of_one_case_are_refused(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "a_seg.nii.gz", ball())
    with pytest.raises(InputError, match="two files of one case"):
        evaluate_folder(*folders, suffixes=["_seg"])


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


def test_a_reader_named_in_dataset_json_is_used(folders: tuple[Path, Path], capsys) -> None:
    file = folders[0].parent / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "overwrite_image_reader_writer": "NibabelIO"}))
    scheme = read_label_scheme(file)
    reader = find_reader(scheme, folders[0] / "a.nii.gz")
    assert type(reader).__name__ == "NibabelIO"
    assert capsys.readouterr().out == ""
    assert read_pair(folders[1] / "a.nii.gz", folders[0] / "a.nii.gz", reader, PredictionLabels(scheme)).spacing == (
        2,
        1,
        1,
    )


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


def test_files_are_written_before_the_output_and_unknown_letters_are_replaced(folders: tuple[Path, Path]) -> None:
    write_dataset_json(folders[0].parent, {"background": 0, "Herzhöhle": 1})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [COMMAND, "-r", folders[0], "-p", folders[1], "-np", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "Herzh?hle" in printed
    (folders[1] / "scores.json").unlink()
    with open("/dev/full", "w") as full:
        failed = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert failed.returncode == 2
    assert "error: output not printed: No space left on device. Fix: the scores are in" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Herzh" in (folders[1] / "scores.json").read_text()


def test_help_shows_an_example_and_single_percent_signs() -> None:
    text = run("--help").stdout
    assert "nnUNetv2_crossmatch_evaluate -r $nnUNet_raw/Dataset501_LA/labelsTs -p predictions" in text
    assert "95 % bootstrap interval" in text
