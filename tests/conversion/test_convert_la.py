from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_data import case_arrays, write_la_challenge, write_la_h5, write_splits_file
from run_converter import Roots, file_names, make_root_folders, read_with_nnunet, run_command, set_root_folders

CASES = ["c0", "c1", "c2", "c3", "c4", "c5"]
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "la_h5"


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    return set_root_folders(tmp_path, monkeypatch)


@pytest.fixture
def splits_option(tmp_path: Path) -> str:
    return str(write_splits_file(tmp_path / "own.json", train=CASES[:4], val=["c4"], test=["c5"]))


def convert_h5(roots: Roots, splits_option: str) -> Path:
    folder = write_la_h5(roots.root / "source", CASES)
    return roots.convert("LA", folder, "--labeled", "2", "--splits", splits_option)


def test_cases_go_to_the_folders_of_their_roles(roots: Roots, splits_option: str) -> None:
    dataset = convert_h5(roots, splits_option)
    images = {part: file_names(dataset / f"images{part}") for part in ("Tr", "Un", "Val", "Ts")}
    assert images == {
        "Tr": ["c0_0000.nii.gz", "c1_0000.nii.gz"],
        "Un": ["c2_0000.nii.gz", "c3_0000.nii.gz"],
        "Val": ["c4_0000.nii.gz"],
        "Ts": ["c5_0000.nii.gz"],
    }


def test_every_role_except_unlabeled_has_labels(roots: Roots, splits_option: str) -> None:
    dataset = convert_h5(roots, splits_option)
    labels = {part: file_names(dataset / f"labels{part}") for part in ("Tr", "Un", "Val", "Ts")}
    assert labels == {"Tr": ["c0.nii.gz", "c1.nii.gz"], "Un": [], "Val": ["c4.nii.gz"], "Ts": ["c5.nii.gz"]}


def test_nnunet_reads_h5_voxels_unchanged_with_axes_in_order(roots: Roots, splits_option: str) -> None:
    dataset = convert_h5(roots, splits_option)
    image, label = case_arrays(1)
    read_image, spacing = read_with_nnunet(dataset / "imagesTr" / "c1_0000.nii.gz")
    read_label, _ = read_with_nnunet(dataset / "labelsTr" / "c1.nii.gz")
    np.testing.assert_array_equal(read_image, image.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_label, label.transpose(2, 1, 0))
    assert spacing == [0.625, 0.625, 0.625]


def test_dataset_json_has_the_entries_that_nnunet_needs(roots: Roots, splits_option: str) -> None:
    description = json.loads((convert_h5(roots, splits_option) / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "LGE-MRI"}
    assert description["labels"] == {"background": 0, "left atrium": 1}
    assert (description["numTraining"], description["file_ending"]) == (2, ".nii.gz")


def test_record_names_source_checksum_spacing_and_caveat(roots: Roots, splits_option: str) -> None:
    record = json.loads((convert_h5(roots, splits_option) / "conversion.json").read_text())
    case = record["cases"]["c2"]
    source = roots.root / "source" / "c2" / "mri_norm2.h5"
    assert case["role"] == "unlabeled"
    assert [entry["file"] for entry in case["sources"]] == [str(source)]
    assert case["sources"][0]["bytes"] == source.stat().st_size
    assert (case["spacing_zyx_mm"], case["spacing_source"]) == ([0.625] * 3, "published")
    assert not case["spacing_is_nominal"]
    assert "cropped around the reference atrium" in record["caveats"][0]


def test_challenge_layout_keeps_geometry_and_maps_255_to_1(roots: Roots, splits_option: str) -> None:
    folder = write_la_challenge(roots.root / "source", CASES)
    dataset = roots.convert("LA", folder, "--labeled", "2", "--splits", splits_option)
    _, expected = case_arrays(0)
    label, spacing = read_with_nnunet(dataset / "labelsTr" / "c0.nii.gz")
    np.testing.assert_array_equal(label, expected.transpose(2, 1, 0))
    assert spacing == [1.25, 0.625, 0.625]
    record = json.loads((dataset / "conversion.json").read_text())
    assert record["cases"]["c0"]["notes"] == ["label value 255 mapped to 1"]
    assert record["caveats"] == []


def test_challenge_origin_is_kept(roots: Roots, splits_option: str) -> None:
    import SimpleITK

    folder = write_la_challenge(roots.root / "source", CASES)
    dataset = roots.convert("LA", folder, "--labeled", "2", "--splits", splits_option)
    image = SimpleITK.ReadImage(dataset / "imagesTs" / "c5_0000.nii.gz")
    assert image.GetOrigin() == (-10.0, 20.0, 30.0)
    assert image.GetDirection() == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def test_four_labeled_cases_get_four_folds(roots: Roots) -> None:
    splits_file = write_splits_file(roots.root / "own.json", train=CASES)
    folder = write_la_h5(roots.root / "source", CASES)
    roots.convert("LA", folder, "--labeled", "4", "--splits", str(splits_file))
    folds = json.loads((roots.preprocessed / "Dataset501_LA" / "splits_final.json").read_text())
    assert sorted(case for fold in folds for case in fold["val"]) == CASES[:4]


def test_two_layouts_in_one_folder_need_the_layout_option(roots: Roots, splits_option: str) -> None:
    folder = write_la_challenge(roots.root / "source", CASES)
    write_la_h5(folder, CASES)
    message = roots.expect_error("LA", folder, "--labeled", "2", "--splits", splits_option)
    assert "h5 and challenge" in message
    assert "--layout" in message


def test_layout_option_chooses(roots: Roots, splits_option: str) -> None:
    folder = write_la_challenge(roots.root / "source", CASES)
    write_la_h5(folder, CASES)
    dataset = roots.convert("LA", folder, "--labeled", "2", "--splits", splits_option, "--layout", "challenge")
    assert read_with_nnunet(dataset / "imagesTr" / "c0_0000.nii.gz")[1] == [1.25, 0.625, 0.625]


@pytest.mark.parametrize(("name", "part"), [("absent", "folder missing"), ("raw", "<case>/mri_norm2.h5")])
def test_folder_without_cases_is_refused(roots: Roots, name: str, part: str) -> None:
    assert part in roots.expect_error("LA", roots.root / name, "--labeled", "4")


def test_parallel_conversion_writes_the_same_files(roots: Roots, splits_option: str) -> None:
    expected = convert_h5(roots, splits_option)
    make_root_folders(roots.root / "second")
    arguments = ("-d", "501", "--labeled", "2", "--splits", splits_option, "-np", "2")
    completed = run_command("LA", roots.root / "second", roots.root / "source", *arguments)
    assert completed.returncode == 0, completed.stderr
    for file in expected.rglob("*.nii.gz"):
        other = roots.root / "second" / "raw" / "Dataset501_LA" / file.relative_to(expected)
        assert other.read_bytes() == file.read_bytes()
    assert "converting" in completed.stderr


@pytest.mark.parametrize("kind", ["LA", "ACDC"])
def test_help_shows_the_splits_form_and_an_example(tmp_path: Path, kind: str) -> None:
    completed = run_command(kind, tmp_path, tmp_path, "--help")
    assert completed.returncode == 0
    assert '"labeled": {"8": [...]}' in completed.stdout
    assert f"nnUNetv2_crossmatch_convert_{kind} -i" in completed.stdout


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real LA volumes in ../shared/data")
def test_real_la_volumes_keep_voxels(roots: Roots) -> None:
    import h5py

    cases = ["06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU"]
    for case in cases:
        (roots.root / "source").mkdir(exist_ok=True)
        (roots.root / "source" / case).symlink_to(REAL / case)
    splits_file = write_splits_file(roots.root / "own.json", train=cases)
    dataset = roots.convert("LA", roots.root / "source", "--labeled", "1", "--splits", str(splits_file))
    with h5py.File(REAL / cases[0] / "mri_norm2.h5") as content:
        image, label = content["image"][()], content["label"][()]
    np.testing.assert_array_equal(
        read_with_nnunet(dataset / "imagesTr" / f"{cases[0]}_0000.nii.gz")[0], image.transpose(2, 1, 0)
    )
    np.testing.assert_array_equal(
        read_with_nnunet(dataset / "labelsTr" / f"{cases[0]}.nii.gz")[0], label.transpose(2, 1, 0)
    )
    assert file_names(dataset / "imagesUn") == [f"{cases[1]}_0000.nii.gz"]
