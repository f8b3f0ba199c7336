from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_data import case_arrays, write_acdc_challenge, write_acdc_h5, write_nifti, write_splits_file
from run_converter import Roots, file_names, read_with_nnunet, set_root_folders

PATIENTS = ["patient003", "patient004", "patient005", "patient006", "patient002", "patient001"]
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "acdc_h5"


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    return set_root_folders(tmp_path, monkeypatch)


@pytest.fixture
def splits_option(tmp_path: Path) -> str:
    lists = {"train": PATIENTS[:4], "val": ["patient002"], "test": ["patient001"]}
    return str(write_splits_file(tmp_path / "own.json", labeled={"2": ["patient004", "patient006"]}, **lists))


def convert(roots: Roots, folder: Path, splits_option: str, *arguments: str) -> Path:
    return roots.convert("ACDC", folder, "--labeled", "2", "--splits", splits_option, *arguments, dataset_id=502)


def test_labeled_counts_patients_with_all_their_frames(roots: Roots, splits_option: str) -> None:
    dataset = convert(roots, write_acdc_h5(roots.root / "source", PATIENTS), splits_option)
    frames = ["patient004_frame01", "patient004_frame02", "patient006_frame01", "patient006_frame02"]
    assert file_names(dataset / "imagesTr") == [f"{frame}_0000.nii.gz" for frame in frames]
    assert file_names(dataset / "labelsTr") == [f"{frame}.nii.gz" for frame in frames]


def test_other_cases_go_to_unlabeled_val_and_test(roots: Roots, splits_option: str) -> None:
    dataset = convert(roots, write_acdc_h5(roots.root / "source", PATIENTS), splits_option)
    counts = {part: len(file_names(dataset / part)) for part in ("imagesUn", "labelsVal", "labelsTs", "labelsUn")}
    assert counts == {"imagesUn": 4, "labelsVal": 2, "labelsTs": 2, "labelsUn": 0}


def test_h5_files_below_data_are_found(roots: Roots, splits_option: str) -> None:
    write_acdc_h5(roots.root / "source" / "data", PATIENTS)
    assert len(file_names(convert(roots, roots.root / "source", splits_option) / "imagesTr")) == 4


def test_slice_files_are_ignored(roots: Roots, splits_option: str) -> None:
    folder = write_acdc_h5(roots.root / "source", PATIENTS)
    (folder / "patient003_frame01_slice_1.h5").write_bytes(b"one slice")
    assert len(file_names(convert(roots, folder, splits_option) / "imagesUn")) == 4


def test_nnunet_reads_h5_voxels_with_axes_zyx(roots: Roots, splits_option: str) -> None:
    dataset = convert(roots, write_acdc_h5(roots.root / "source", PATIENTS), splits_option)
    image, label = case_arrays(101, classes=4)
    read_image, spacing = read_with_nnunet(dataset / "imagesTr" / "patient004_frame01_0000.nii.gz")
    np.testing.assert_array_equal(read_image, image.transpose(2, 1, 0))
    np.testing.assert_array_equal(
        read_with_nnunet(dataset / "labelsTr" / "patient004_frame01.nii.gz")[0], label.transpose(2, 1, 0)
    )
    assert spacing == [10.0, 1.0, 1.0]


def test_dataset_json_names_the_heart_parts(roots: Roots, splits_option: str) -> None:
    dataset = convert(roots, write_acdc_h5(roots.root / "source", PATIENTS), splits_option)
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert description["numTraining"] == 4


def test_folds_keep_the_frames_of_a_patient_together(roots: Roots) -> None:
    patients = [f"patient{number:03d}" for number in range(7)]
    splits_file = write_splits_file(roots.root / "own.json", labeled=patients)
    folder = write_acdc_h5(roots.root / "source", patients)
    dataset = roots.convert("ACDC", folder, "--splits", str(splits_file))
    folds = json.loads((roots.preprocessed / dataset.name / "splits_final.json").read_text())
    sides = [[{case[:10] for case in fold[side]} for side in ("train", "val")] for fold in folds]
    assert len(folds) == 5
    assert all(train and val and not train & val for train, val in sides)
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(
        f"{patient}_frame{frame}" for patient in patients for frame in ("01", "02")
    )


def test_folds_are_written_to_the_raw_and_the_preprocessed_folder(roots: Roots, splits_option: str) -> None:
    dataset = convert(roots, write_acdc_h5(roots.root / "source", PATIENTS), splits_option)
    nnunet_copy = roots.preprocessed / dataset.name / "splits_final.json"
    assert (dataset / "splits_final.json").read_text() == nnunet_copy.read_text()
    assert len(json.loads(nnunet_copy.read_text())) == 2


def test_single_patient_gets_no_folds_and_a_hint(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    splits_file = write_splits_file(roots.root / "own.json", train=PATIENTS[:2])
    folder = write_acdc_h5(roots.root / "source", PATIENTS[:2])
    dataset = roots.convert("ACDC", folder, "--labeled", "1", "--splits", str(splits_file))
    assert not (dataset / "splits_final.json").exists()
    assert "train with fold all" in capsys.readouterr().err


def test_challenge_frames_come_from_info_cfg(roots: Roots, splits_option: str) -> None:
    folder = write_acdc_challenge(roots.root / "source", PATIENTS, frames=(4, 11))
    write_nifti(folder / "patient004" / "patient004_frame01.nii.gz", np.ones((4, 4, 4), np.int16))
    dataset = convert(roots, folder, splits_option)
    frames = [f"patient{number}_frame{frame}_0000.nii.gz" for number in ("004", "006") for frame in ("04", "11")]
    assert file_names(dataset / "imagesTr") == frames


def test_challenge_spacing_comes_from_the_header(roots: Roots, splits_option: str) -> None:
    dataset = convert(roots, write_acdc_challenge(roots.root / "source", PATIENTS), splits_option)
    image, spacing = read_with_nnunet(dataset / "imagesUn" / "patient003_frame12_0000.nii.gz")
    expected = (case_arrays(12, classes=4)[0] * 100).astype(np.int16)
    np.testing.assert_array_equal(image, expected.transpose(2, 1, 0))
    assert spacing == [8.0, 1.5, 1.5]


def test_training_folder_below_is_found(roots: Roots, splits_option: str) -> None:
    write_acdc_challenge(roots.root / "database" / "training", PATIENTS)
    assert len(file_names(convert(roots, roots.root / "database", splits_option) / "imagesTr")) == 4


def test_missing_patients_are_listed_and_skipped_on_request(roots: Roots, splits_option: str) -> None:
    folder = write_acdc_h5(roots.root / "source", PATIENTS[:3])
    message = roots.expect_error("ACDC", folder, "--labeled", "2", "--splits", splits_option)
    assert "3 listed cases missing" in message
    assert "patient006, patient002, patient001" in message
    dataset = convert(roots, folder, splits_option, "--allow-missing")
    record = json.loads((dataset / "conversion.json").read_text())
    assert sorted(record["missing"]) == ["patient001", "patient002", "patient006"]


def test_missing_frame_counts_as_missing(roots: Roots, splits_option: str) -> None:
    folder = write_acdc_h5(roots.root / "source", PATIENTS)
    (folder / "patient003_frame02.h5").unlink()
    message = roots.expect_error("ACDC", folder, "--labeled", "2", "--splits", splits_option)
    assert "patient003 (1 of 2 frames)" in message


def test_allow_missing_needs_a_labeled_case(roots: Roots, splits_option: str) -> None:
    folder = write_acdc_h5(roots.root / "source", ["patient003", "patient001"])
    message = roots.expect_error("ACDC", folder, "--labeled", "2", "--splits", splits_option, "--allow-missing")
    assert "no labeled case" in message


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real ACDC volumes in ../shared/data")
def test_real_acdc_patients_keep_voxels(roots: Roots) -> None:
    import h5py

    (roots.root / "source").mkdir()
    for patient in ("patient003", "patient038"):
        for file in REAL.glob(f"{patient}_frame*.h5"):
            (roots.root / "source" / file.name).symlink_to(file)
    arguments = ("--labeled", "3", "--allow-missing")
    dataset = roots.convert("ACDC", roots.root / "source", *arguments, dataset_id=502)
    with h5py.File(REAL / "patient038_frame01.h5") as content:
        image, label = content["image"][()].astype(np.float32), content["label"][()]
    np.testing.assert_array_equal(read_with_nnunet(dataset / "imagesTr" / "patient038_frame01_0000.nii.gz")[0], image)
    np.testing.assert_array_equal(read_with_nnunet(dataset / "labelsTr" / "patient038_frame01.nii.gz")[0], label)
    assert len(file_names(dataset / "imagesUn")) == 2
