from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from converting import Roots, make_roots, names, own_roots, read_back, run_command
from fake_data import case_arrays, la_challenge, la_h5, splits

CASES = ["c0", "c1", "c2", "c3", "c4", "c5"]
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "la_h5"


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    return own_roots(tmp_path, monkeypatch)


@pytest.fixture
def own_splits(tmp_path: Path) -> str:
    return str(splits(tmp_path / "own.json", train=CASES[:4], val=["c4"], test=["c5"]))


def convert_h5(roots: Roots, own_splits: str) -> Path:
    folder = la_h5(roots.root / "source", CASES)
    return roots.convert("LA", folder, "--labeled", "2", "--splits", own_splits)


def test_cases_go_to_the_folders_of_their_roles(roots: Roots, own_splits: str) -> None:
    dataset = convert_h5(roots, own_splits)
    images = {part: names(dataset / f"images{part}") for part in ("Tr", "Un", "Val", "Ts")}
    assert images == {
        "Tr": ["c0_0000.nii.gz", "c1_0000.nii.gz"],
        "Un": ["c2_0000.nii.gz", "c3_0000.nii.gz"],
        "Val": ["c4_0000.nii.gz"],
        "Ts": ["c5_0000.nii.gz"],
    }


def test_every_role_but_unlabeled_has_labels(roots: Roots, own_splits: str) -> None:
    dataset = convert_h5(roots, own_splits)
    labels = {part: names(dataset / f"labels{part}") for part in ("Tr", "Un", "Val", "Ts")}
    assert labels == {"Tr": ["c0.nii.gz", "c1.nii.gz"], "Un": [], "Val": ["c4.nii.gz"], "Ts": ["c5.nii.gz"]}


def test_host_reads_h5_voxels_unchanged_with_axes_in_order(roots: Roots, own_splits: str) -> None:
    dataset = convert_h5(roots, own_splits)
    image, label = case_arrays(1)
    read_image, spacing = read_back(dataset / "imagesTr" / "c1_0000.nii.gz")
    read_label, _ = read_back(dataset / "labelsTr" / "c1.nii.gz")
    np.testing.assert_array_equal(read_image, image.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_label, label.transpose(2, 1, 0))
    assert spacing == [0.625, 0.625, 0.625]


def test_dataset_json_is_what_the_host_plans_from(roots: Roots, own_splits: str) -> None:
    description = json.loads((convert_h5(roots, own_splits) / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "LGE-MRI"}
    assert description["labels"] == {"background": 0, "left atrium": 1}
    assert (description["numTraining"], description["file_ending"]) == (2, ".nii.gz")


def test_record_names_source_checksum_spacing_and_caveat(roots: Roots, own_splits: str) -> None:
    record = json.loads((convert_h5(roots, own_splits) / "conversion.json").read_text())
    case = record["cases"]["c2"]
    source = roots.root / "source" / "c2" / "mri_norm2.h5"
    assert case["role"] == "unlabeled"
    assert [entry["file"] for entry in case["sources"]] == [str(source)]
    assert case["sources"][0]["bytes"] == source.stat().st_size
    assert (case["spacing_zyx_mm"], case["spacing_source"]) == ([0.625] * 3, "published")
    assert not case["spacing_is_nominal"]
    assert "cropped around the reference atrium" in record["caveats"][0]


def test_challenge_layout_keeps_geometry_and_maps_255_to_1(roots: Roots, own_splits: str) -> None:
    folder = la_challenge(roots.root / "source", CASES)
    dataset = roots.convert("LA", folder, "--labeled", "2", "--splits", own_splits)
    _, expected = case_arrays(0)
    label, spacing = read_back(dataset / "labelsTr" / "c0.nii.gz")
    np.testing.assert_array_equal(label, expected.transpose(2, 1, 0))
    assert spacing == [1.25, 0.625, 0.625]
    record = json.loads((dataset / "conversion.json").read_text())
    assert record["cases"]["c0"]["notes"] == ["label value 255 mapped to 1"]
    assert record["caveats"] == []


def test_challenge_origin_survives(roots: Roots, own_splits: str) -> None:
    import SimpleITK

    folder = la_challenge(roots.root / "source", CASES)
    dataset = roots.convert("LA", folder, "--labeled", "2", "--splits", own_splits)
    image = SimpleITK.ReadImage(dataset / "imagesTs" / "c5_0000.nii.gz")
    assert image.GetOrigin() == (-10.0, 20.0, 30.0)
    assert image.GetDirection() == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def test_four_labeled_cases_get_four_folds(roots: Roots) -> None:
    own = splits(roots.root / "own.json", train=CASES)
    folder = la_h5(roots.root / "source", CASES)
    roots.convert("LA", folder, "--labeled", "4", "--splits", str(own))
    folds = json.loads((roots.preprocessed / "Dataset501_LA" / "splits_final.json").read_text())
    assert sorted(case for fold in folds for case in fold["val"]) == CASES[:4]


def test_two_layouts_in_one_folder_must_be_told_apart(roots: Roots, own_splits: str) -> None:
    folder = la_challenge(roots.root / "source", CASES)
    la_h5(folder, CASES)
    message = roots.refusal("LA", folder, "--labeled", "2", "--splits", own_splits)
    assert "h5 and challenge" in message
    assert "--layout" in message


def test_layout_option_chooses(roots: Roots, own_splits: str) -> None:
    folder = la_challenge(roots.root / "source", CASES)
    la_h5(folder, CASES)
    dataset = roots.convert("LA", folder, "--labeled", "2", "--splits", own_splits, "--layout", "challenge")
    assert read_back(dataset / "imagesTr" / "c0_0000.nii.gz")[1] == [1.25, 0.625, 0.625]


@pytest.mark.parametrize(("name", "part"), [("absent", "folder missing"), ("raw", "<case>/mri_norm2.h5")])
def test_folder_without_cases_is_refused(roots: Roots, name: str, part: str) -> None:
    assert part in roots.refusal("LA", roots.root / name, "--labeled", "4")


def test_command_converts_in_parallel_as_in_one_process(roots: Roots, own_splits: str) -> None:
    expected = convert_h5(roots, own_splits)
    make_roots(roots.root / "second")
    arguments = ("-d", "501", "--labeled", "2", "--splits", own_splits, "-np", "2")
    done = run_command("LA", roots.root / "second", roots.root / "source", *arguments)
    assert done.returncode == 0, done.stderr
    for file in expected.rglob("*.nii.gz"):
        other = roots.root / "second" / "raw" / "Dataset501_LA" / file.relative_to(expected)
        assert other.read_bytes() == file.read_bytes()
    assert "converting" in done.stderr


@pytest.mark.parametrize("kind", ["LA", "ACDC"])
def test_help_shows_the_splits_form_and_an_example(tmp_path: Path, kind: str) -> None:
    done = run_command(kind, tmp_path, tmp_path, "--help")
    assert done.returncode == 0
    assert '"labeled": {"8": [...]}' in done.stdout
    assert f"nnUNetv2_crossmatch_convert_{kind} -i" in done.stdout


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real LA volumes in ../shared/data")
def test_real_la_volumes_keep_voxels(roots: Roots) -> None:
    import h5py

    cases = ["06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU"]
    for case in cases:
        (roots.root / "source").mkdir(exist_ok=True)
        (roots.root / "source" / case).symlink_to(REAL / case)
    own = splits(roots.root / "own.json", train=cases)
    dataset = roots.convert("LA", roots.root / "source", "--labeled", "1", "--splits", str(own))
    with h5py.File(REAL / cases[0] / "mri_norm2.h5") as content:
        image, label = content["image"][()], content["label"][()]
    np.testing.assert_array_equal(
        read_back(dataset / "imagesTr" / f"{cases[0]}_0000.nii.gz")[0], image.transpose(2, 1, 0)
    )
    np.testing.assert_array_equal(read_back(dataset / "labelsTr" / f"{cases[0]}.nii.gz")[0], label.transpose(2, 1, 0))
    assert names(dataset / "imagesUn") == [f"{cases[1]}_0000.nii.gz"]
