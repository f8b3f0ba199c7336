"""Faults in folders of predictions and references: each is named, and no output is written."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from segmentation_folders import SPACING_XYZ, ball, three_cases, write, write_dataset_json

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folder
from nnunetv2_crossmatch.evaluation.segmentations import read_segmentation

COMMAND = Path(sys.executable).with_name("nnUNetv2_crossmatch_evaluate")
FLIPPED_DIRECTION = (-1, 0, 0, 0, 1, 0, 0, 0, 1)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return three_cases(tmp_path)


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def corrupt_checksum(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # a bit of the gzip checksum
    file.write_bytes(content)


def write_wrong_label(file: Path) -> None:
    write(file, ball() * 7)


def write_probabilities(file: Path) -> None:
    write(file, ball().astype(np.float32) * 0.5)


def write_two_channels(file: Path) -> None:
    write(file, np.stack([ball(), ball()]), (*SPACING_XYZ, 1.0))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "prediction missing"),
    "cut": (truncate, "damaged file"),
    "flipped bit": (corrupt_checksum, "CRC check failed"),
    "no image": (lambda file: file.write_text("<html>"), "damaged file"),
    "empty file": (lambda file: file.write_bytes(b""), "damaged file"),
    "shape": (lambda file: write(file, ball(shape=(12, 18, 20))), r"shape .*\(12, 18, 20\), but \(12, 18, 16\)"),
    "spacing": (lambda file: write(file, ball(), (1, 1, 3)), r"spacing .*\(3, 1, 1\), but \(2, 1, 1\)"),
    "origin": (lambda file: write(file, ball(), origin=(5, 0, 0)), r"origin .*\(5, 0, 0\), but \(0, 0, 0\)"),
    "direction": (lambda file: write(file, ball(), direction=FLIPPED_DIRECTION), r"direction .*\(-1, 0, 0"),
    "label": (write_wrong_label, r"label not in dataset.json in .*: 7 \(\d+ voxels\); known: 0, 1"),
    "probabilities": (write_probabilities, r"label not in dataset.json in .*: 0.5 \(\d+ voxels\)"),
    "channels": (write_two_channels, "not a segmentation"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_prediction_is_named(folders: tuple[Path, Path], fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(folders[1] / "b.nii.gz")
    with pytest.raises(InputError, match=message) as caught:
        evaluate_folder(*folders)
    assert {Path(problem.where) for problem in caught.value.problems} == {folders[1] / "b.nii.gz"}
    assert all(problem.fix for problem in caught.value.problems)


def test_an_uncompressed_file_named_nii_gz_is_scored(folders: tuple[Path, Path]) -> None:
    expected = evaluate_folder(*folders).values
    for file in (folders[0] / "a.nii.gz", folders[1] / "b.nii.gz"):
        file.write_bytes(gzip.decompress(file.read_bytes()))
    np.testing.assert_array_equal(evaluate_folder(*folders).values, expected)


def test_a_changed_byte_in_a_compressed_metaimage_is_named(tmp_path: Path) -> None:
    """SimpleITK reads it without an error, with other labels or none."""
    for folder in ("labelsTs", "predictions"):
        write(tmp_path / folder / "a.mha", ball())
    write_dataset_json(tmp_path, file_ending=".mha")
    file = tmp_path / "predictions" / "a.mha"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"damaged file in {file}"):
        evaluate_folder(tmp_path / "labelsTs", tmp_path / "predictions")


def test_what_the_reader_warns_of_is_told_once_per_kind(
    folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for case in "bc":
        file = folders[1] / f"{case}.nii.gz"
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[280:284] = np.array([-5], "<f4").tobytes()  # the first scale in the sform
        file.write_bytes(gzip.compress(content))
    evaluate_folder(*folders)
    lines = [line for line in capfd.readouterr().err.splitlines() if "arning" in line]
    assert lines == [
        f"warning: the file has unexpected scales in sform (2 files, the first is {folders[1] / 'b.nii.gz'})"
    ]


def test_an_impossible_voxel_size_in_the_header_is_named(folders: tuple[Path, Path]) -> None:
    """SimpleITK reads it as 1 mm."""
    file = folders[1] / "b.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[80:84] = bytes(4)
    file.write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=rf"impossible voxel size in {file}: \(2, 1, 0\) mm"):
        evaluate_folder(*folders)


def test_a_cut_file_without_compression_is_named(tmp_path: Path) -> None:
    for folder in ("labelsTs", "predictions"):
        write(tmp_path / folder / "a.nii", ball())
    write_dataset_json(tmp_path, file_ending=".nii")
    truncate(tmp_path / "predictions" / "a.nii")
    with pytest.raises(InputError, match="bytes are there"):
        evaluate_folder(tmp_path / "labelsTs", tmp_path / "predictions")


def test_a_reader_gets_names_as_nnunet_gives_them(tmp_path: Path) -> None:
    """Own readers of a data set may know nothing of paths."""
    given: list[object] = []
    header = {"spacing": (1.0, 1.0, 1.0)}
    reader = SimpleNamespace(read_seg=lambda name: (given.append(name), (np.zeros((1, 2, 2, 2)), header))[1])
    write(tmp_path / "a.nii.gz", ball())
    read_segmentation(tmp_path / "a.nii.gz", reader)
    assert given == [str(tmp_path / "a.nii.gz")]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_nan_that_survives_reading_is_named(tmp_path: Path) -> None:
    """In one line, without numpy's of a cast beside it."""
    write(tmp_path / "labelsTs" / "a.nrrd", ball())
    write(tmp_path / "predictions" / "a.nrrd", np.where(ball(), np.nan, 0).astype(np.float32))
    write_dataset_json(tmp_path, file_ending=".nrrd")
    with pytest.raises(InputError, match=r"label not in dataset.json in .*: nan \(\d+ voxels\)"):
        evaluate_folder(tmp_path / "labelsTs", tmp_path / "predictions")


def test_a_damaged_reference_is_named(folders: tuple[Path, Path]) -> None:
    truncate(folders[0] / "a.nii.gz")
    with pytest.raises(InputError, match="damaged file") as caught:
        evaluate_folder(*folders)
    assert caught.value.problems[0].where == folders[0] / "a.nii.gz"


def test_the_ignore_label_is_unknown_in_a_prediction(folders: tuple[Path, Path]) -> None:
    dataset_json = write_dataset_json(folders[1].parent / "labels", {"background": 0, "body": 1, "ignore": 2})
    write(folders[1] / "a.nii.gz", ball() * 2)
    with pytest.raises(InputError, match=r"label not in dataset.json in .*predictions.*: 2 "):
        evaluate_folder(*folders, dataset_json)


def test_an_empty_folder_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        InputError, match=r"empty folder in .*nothing: it holds no file that ends with \.nii\.gz\. Fix: check"
    ):
        evaluate_folder(folders[0], tmp_path / "nothing")


def test_both_missing_folders_are_named(tmp_path: Path) -> None:
    dataset_json = write_dataset_json(tmp_path)
    with pytest.raises(InputError) as caught:
        evaluate_folder(tmp_path / "no", tmp_path / "neither", dataset_json)
    assert [problem.where for problem in caught.value.problems] == [tmp_path / "no", tmp_path / "neither"]


def test_folders_without_a_common_name_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "others" / "x.nii.gz", ball())
    with pytest.raises(
        InputError, match=r"no case in common in .*others: none of its 1 files .* one of the 3 in .*labelsTs\. Fix"
    ):
        evaluate_folder(folders[0], tmp_path / "others", allow_missing=True)


def test_without_a_dataset_json_both_searched_files_are_named(folders: tuple[Path, Path]) -> None:
    (folders[0].parent / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"looked for .*predictions/dataset.json and .*Balls/dataset.json"):
        evaluate_folder(*folders)


@pytest.mark.parametrize("content", ["{", "[]", '{"labels": {"background": 0, "a": 1}}', '{"labels": [1]}'])
def test_an_unusable_dataset_json_is_named(folders: tuple[Path, Path], content: str) -> None:
    (folders[1] / "dataset.json").write_text(content)
    with pytest.raises(
        InputError,
        match=r"no usable label scheme in .*dataset\.json: (.* (missing|instead of)|not .*JSON).*\. Fix: give a",
    ):
        evaluate_folder(*folders)


def test_labels_without_foreground_are_refused(folders: tuple[Path, Path]) -> None:
    write_dataset_json(folders[1], {"background": 0, "ignore": 1})
    with pytest.raises(
        InputError, match=r"no class to score in .*dataset\.json: labels names .*\. Fix: add the classes"
    ):
        evaluate_folder(*folders)


def test_an_unreadable_conversion_record_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0].parent / "conversion.json").write_text('{"cases": {"a": {}}}')
    with pytest.raises(
        InputError,
        match=r"unreadable conversion record in .*\.json: cases/a/spacing_is_nominal is missing\. Fix: convert",
    ):
        evaluate_folder(*folders)


def test_all_bad_files_are_listed_and_old_results_are_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    for case in "abc":
        write(other / f"{case}.nii.gz", ball())
    (folders[1] / "a.nii.gz").unlink()
    truncate(folders[1] / "b.nii.gz")
    write_wrong_label(folders[1] / "c.nii.gz")
    write(other / "c.nii.gz", ball(), (1, 1, 5))
    (folders[1] / "scores.json").write_text("old")
    command = [COMMAND, "-r", folders[0], "-p", folders[1], "--compare", other, "-np", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(errors) == 4
    assert all(". Fix: " in line for line in errors)
    assert (folders[1] / "scores.json").read_text() == "old"
    assert [file.name for file in folders[1].glob("*scores*")] == ["scores.json"]


@pytest.mark.parametrize("arguments", [("-np", "0"), ("--spacing", "1", "0", "1"), ("--spacing", "nan", "1", "1")])
def test_impossible_numbers_are_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    from nnunetv2_crossmatch.cli.evaluate import main

    monkeypatch.setattr(sys, "argv", ["evaluate", "-r", str(folders[0]), "-p", str(folders[1]), *arguments])
    with pytest.raises(InputError, match="impossible"):
        main()


def test_an_empty_prediction_never_has_distance_zero(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "b.nii.gz", 0 * ball())
    scores = evaluate_folder(*folders)
    assert np.isnan(scores.per_case("body", "hd95_mm")[1])
    assert scores.summary()["body"]["hd95_mm"].undefined == 1
