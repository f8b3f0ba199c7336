"""Faults 1 to 17 of the reliability table: bad input of the converters, on generated data."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake_data import (
    case_arrays,
    write_acdc_challenge,
    write_acdc_h5,
    write_h5,
    write_la_challenge,
    write_la_h5,
    write_nifti,
    write_nrrd,
    write_splits_file,
)
from run_converter import (
    Roots,
    command_line,
    environment,
    file_names,
    make_root_folders,
    read_with_nnunet,
    run_command,
    set_root_folders,
)

from nnunetv2_crossmatch.folders import exclusive

CASES = ["c0", "c1", "c2", "c3"]
PATIENTS = ["patient003", "patient090", "patient005"]
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    return set_root_folders(tmp_path, monkeypatch)


@pytest.fixture
def la_folder(tmp_path: Path) -> Path:
    """Four cases; with :func:`la_lists` c0 and c1 are labeled, c2 is unlabeled, c3 is a test case."""
    return write_la_h5(tmp_path / "source", CASES)


@pytest.fixture
def la_lists(tmp_path: Path) -> tuple[str, ...]:
    return "--splits", str(
        write_splits_file(tmp_path / "own.json", labeled=["c0", "c1"], unlabeled=["c2"], test=["c3"])
    )


@pytest.fixture
def acdc_folder(tmp_path: Path) -> Path:
    """Three patients; with :func:`acdc_lists` the first two are labeled, the last is unlabeled."""
    return write_acdc_challenge(tmp_path / "source", PATIENTS)


@pytest.fixture
def acdc_lists(tmp_path: Path) -> tuple[str, ...]:
    return "--splits", str(write_splits_file(tmp_path / "own.json", labeled=PATIENTS[:2], unlabeled=PATIENTS[2:]))


def h5_file(folder: Path, case: str) -> Path:
    return folder / case / "mri_norm2.h5"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_label(file: Path, label: np.ndarray) -> None:
    write_h5(file, image=case_arrays(0)[0], label=label)


def record(dataset: Path) -> dict:
    return json.loads((dataset / "conversion.json").read_text())


def test_fault_01_truncated_h5(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    cut(h5_file(la_folder, "c0"))
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert f"damaged file in {h5_file(la_folder, 'c0')}" in message
    assert "truncated file" in message
    assert "Fix: download it again" in message


def test_fault_01_all_bad_files_in_one_run_without_traceback(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...]
) -> None:
    cut(h5_file(la_folder, "c0"))
    cut(h5_file(la_folder, "c2"))
    completed = run_command("LA", roots.root, la_folder, "-d", "501", "-np", "2", *la_lists)
    errors = [line for line in completed.stderr.splitlines() if line.startswith("error: ")]
    assert completed.returncode == 2
    assert [case for case in CASES if any(str(h5_file(la_folder, case)) in line for line in errors)] == ["c0", "c2"]
    assert "Traceback" not in completed.stderr
    assert file_names(roots.raw) == []


def test_fault_01_flipped_bit_in_h5(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    content = bytearray(h5_file(la_folder, "c0").read_bytes())
    with h5py.File(h5_file(la_folder, "c0")) as file:
        chunk = file["image"].id.get_chunk_info(0)
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    h5_file(la_folder, "c0").write_bytes(content)
    assert "damaged file" in roots.expect_error("LA", la_folder, *la_lists)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "HTML page"),
        (b"", "empty file"),
    ],
)
def test_fault_02_failed_download_instead_of_h5(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], content: bytes, what: str
) -> None:
    h5_file(la_folder, "c0").write_bytes(content)
    assert what in roots.expect_error("LA", la_folder, *la_lists)


def test_fault_03_other_keys_are_listed(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    image, label = case_arrays(0)
    write_h5(h5_file(la_folder, "c2"), raw=image, seg=label)
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert "no image; keys found: raw, seg" in message


@pytest.mark.parametrize("case", ["c0", "c3"])
def test_fault_03_label_missing_in_labeled_or_test_case(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], case: str
) -> None:
    write_h5(h5_file(la_folder, case), image=case_arrays(0)[0])
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert "no label; keys found: image" in message
    assert '"unlabeled" list' in message


def test_fault_03_unlabeled_case_needs_no_label(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    write_h5(h5_file(la_folder, "c2"), image=case_arrays(0)[0])
    assert file_names(roots.convert("LA", la_folder, *la_lists) / "imagesUn") == ["c2_0000.nii.gz"]


def test_fault_04_shapes_differ(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    with_label(h5_file(la_folder, "c0"), np.zeros((20, 16, 7), np.uint8))
    assert "image (20, 16, 8), label (20, 16, 7)" in roots.expect_error("LA", la_folder, *la_lists)


@pytest.mark.parametrize("shape", [(20, 16), (1, 20, 16, 8), (20, 0, 8)])
def test_fault_04_not_three_axes(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    with h5py.File(h5_file(la_folder, "c0"), "w") as file:
        file["image"], file["label"] = np.ones(shape, np.float32), np.ones(shape, np.uint8)
    assert f"image {shape}, label {shape}" in roots.expect_error("LA", la_folder, *la_lists)


def test_fault_04_not_numbers(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    write_h5(h5_file(la_folder, "c0"), image=np.full((2, 2, 2), b"text"), label=np.ones((2, 2, 2), np.uint8))
    assert "voxels are not numbers" in roots.expect_error("LA", la_folder, *la_lists)


def test_fault_05_label_255_becomes_1_and_is_noted(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    label = case_arrays(0)[1]
    with_label(h5_file(la_folder, "c0"), label * 255)
    dataset = roots.convert("LA", la_folder, *la_lists)
    np.testing.assert_array_equal(read_with_nnunet(dataset / "labelsTr" / "c0.nii.gz")[0], label.transpose(2, 1, 0))
    assert record(dataset)["cases"]["c0"]["notes"] == ["label value 255 mapped to 1"]
    assert "label value 255 mapped to 1 (1: c0)" in capsys.readouterr().err


@pytest.mark.parametrize("value", [2, 0.5, -1, np.nan, 256])
def test_fault_05_unknown_label_values_with_counts(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], value: float
) -> None:
    label = np.zeros((20, 16, 8), np.float32)
    label[:2, :2, :2] = value
    with_label(h5_file(la_folder, "c0"), label)
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert f"{value:g} (8 voxels)" in message
    assert "0 (2552 voxels)" in message


def test_fault_05_acdc_does_not_take_255(roots: Roots) -> None:
    folder = write_acdc_h5(roots.root / "h5", ["patient001"])
    label = np.zeros((8, 16, 20), np.uint8)
    label[0] = 255
    write_h5(folder / "patient001_frame01.h5", image=case_arrays(0)[0].transpose(2, 1, 0), label=label)
    splits_file = write_splits_file(roots.root / "one.json", labeled=["patient001"])
    assert "255 (320 voxels); expected 0 to 3" in roots.expect_error("ACDC", folder, "--splits", str(splits_file))


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32, np.float64])
def test_fault_05_whole_numbers_of_any_type_are_labels(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], dtype: type
) -> None:
    label = case_arrays(0)[1]
    with_label(h5_file(la_folder, "c0"), label.astype(dtype))
    dataset = roots.convert("LA", la_folder, *la_lists)
    np.testing.assert_array_equal(read_with_nnunet(dataset / "labelsTr" / "c0.nii.gz")[0], label.transpose(2, 1, 0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fault_06_non_finite_image(roots: Roots, la_folder: Path, la_lists: tuple[str, ...], value: float) -> None:
    image, label = case_arrays(0)
    image[3, 2, 1] = image[4, 5, 6] = value
    write_h5(h5_file(la_folder, "c2"), image=image, label=label)
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert "2 voxels are NaN or infinite, the first at (x, y, z) = (3, 2, 1)" in message
    assert file_names(roots.raw) == []


def test_fault_06_nan_in_nrrd(roots: Roots, la_lists: tuple[str, ...]) -> None:
    folder = write_la_challenge(roots.root / "challenge", CASES)
    image = case_arrays(0)[0]
    image[0, 0, 0] = np.nan
    write_nrrd(folder / "c2" / "lgemri.nrrd", image)
    assert "1 voxels are NaN" in roots.expect_error("LA", folder, *la_lists)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_fault_07_constant_image(roots: Roots, la_folder: Path, la_lists: tuple[str, ...], value: float) -> None:
    image, label = case_arrays(0)
    write_h5(h5_file(la_folder, "c2"), image=np.full_like(image, value), label=label)
    assert f"image without content in {h5_file(la_folder, 'c2')}: every voxel is {value}" in roots.expect_error(
        "LA", la_folder, *la_lists
    )


def test_fault_07_one_empty_label_is_a_warning(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with_label(h5_file(la_folder, "c0"), np.zeros((20, 16, 8), np.uint8))
    roots.convert("LA", la_folder, *la_lists)
    assert "warning: label without foreground (1: c0)" in capsys.readouterr().err


def test_fault_07_all_labeled_cases_empty(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    for case in ("c0", "c1"):
        with_label(h5_file(la_folder, case), np.zeros((20, 16, 8), np.uint8))
    assert "no foreground in any labeled case: c0, c1" in roots.expect_error("LA", la_folder, *la_lists)


def test_fault_08_la_case_without_laendo(roots: Roots, la_lists: tuple[str, ...]) -> None:
    folder = write_la_challenge(roots.root / "challenge", CASES)
    (folder / "c3" / "laendo.nrrd").unlink()
    message = roots.expect_error("LA", folder, *la_lists)
    assert "label missing" in message
    assert "c3 is in the list of test cases" in message
    assert '"unlabeled" list' in message


def test_fault_08_la_case_without_laendo_may_be_unlabeled(roots: Roots, la_lists: tuple[str, ...]) -> None:
    folder = write_la_challenge(roots.root / "challenge", CASES)
    (folder / "c2" / "laendo.nrrd").unlink()
    assert file_names(roots.convert("LA", folder, *la_lists) / "imagesUn") == ["c2_0000.nii.gz"]


def test_fault_08_case_that_no_list_names(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    write_la_h5(la_folder, ["foreign"])
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert "cases that no list names" in message
    assert "foreign" in message


@pytest.mark.parametrize("text", ["c0\r\nc1\r\n", "\nc0\n\n  c1 \n\n", "c0\nc1", "\ufeffc0\nc1\n"])
def test_fault_09_list_file_with_odd_line_ends_is_accepted(roots: Roots, la_folder: Path, text: str) -> None:
    (roots.root / "train.list").write_bytes(text.encode())
    splits_file = write_splits_file(roots.root / "s.json", labeled="train.list", unlabeled=["c2"], test=["c3"])
    assert file_names(roots.convert("LA", la_folder, "--splits", str(splits_file)) / "labelsTr") == [
        "c0.nii.gz",
        "c1.nii.gz",
    ]


def test_fault_09_duplicates_are_named(roots: Roots, la_folder: Path) -> None:
    splits_file = write_splits_file(roots.root / "s.json", labeled=["c0", "c1", "c0"], unlabeled=["c2"], test=["c3"])
    assert 'names repeated in "labeled"' in roots.expect_error("LA", la_folder, "--splits", str(splits_file))


def test_fault_09_unknown_ids_are_named(roots: Roots, la_folder: Path) -> None:
    splits_file = write_splits_file(
        roots.root / "s.json", labeled=["c0", "c1"], unlabeled=["c2", "c9", "c8"], test=["c3"]
    )
    assert "2 listed cases missing" in (message := roots.expect_error("LA", la_folder, "--splits", str(splits_file)))
    assert "c9, c8" in message


def test_fault_10_overlapping_lists(roots: Roots, la_folder: Path) -> None:
    splits_file = write_splits_file(
        roots.root / "s.json", labeled=["c0", "c1"], unlabeled=["c1", "c2"], test=["c3", "c0"]
    )
    message = roots.expect_error("LA", la_folder, "--splits", str(splits_file))
    assert f'lists "labeled" and "unlabeled" overlap in {splits_file}: c1' in message
    assert f'lists "labeled" and "test" overlap in {splits_file}: c0' in message


def test_fault_10_training_cases_left_out(roots: Roots, la_folder: Path) -> None:
    splits_file = write_splits_file(
        roots.root / "s.json", train=["c0", "c1", "c2"], labeled=["c0"], unlabeled=["c2"], test=["c3"]
    )
    assert "training cases left out" in (message := roots.expect_error("LA", la_folder, "--splits", str(splits_file)))
    assert ": c1." in message


def test_fault_10_frames_of_a_patient_in_two_lists(roots: Roots, acdc_folder: Path) -> None:
    splits_file = write_splits_file(
        roots.root / "s.json",
        labeled=["patient003_frame01", "patient005"],
        unlabeled=["patient090"],
        test=["patient003_frame12"],
    )
    assert f'"labeled" and "test" overlap in {splits_file}: patient003' in roots.expect_error(
        "ACDC", acdc_folder, "--splits", str(splits_file)
    )


def test_fault_10_frame_left_out(roots: Roots, acdc_folder: Path) -> None:
    splits_file = write_splits_file(
        roots.root / "s.json", labeled=["patient003_frame01", "patient005"], unlabeled=["patient090"]
    )
    message = roots.expect_error("ACDC", acdc_folder, "--splits", str(splits_file))
    assert "cases that no list names" in message
    assert "patient003_frame12" in message


def test_fault_11_truncated_nifti(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    file = acdc_folder / "patient005" / "patient005_frame12.nii.gz"
    cut(file)
    assert f"damaged file in {file}" in roots.expect_error("ACDC", acdc_folder, *acdc_lists)


def test_fault_11_nifti_with_flipped_bit(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    file = acdc_folder / "patient003" / "patient003_frame01_gt.nii.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert f"damaged file in {file}" in roots.expect_error("ACDC", acdc_folder, *acdc_lists)


def test_fault_11_truncated_nrrd(roots: Roots, la_lists: tuple[str, ...]) -> None:
    folder = write_la_challenge(roots.root / "challenge", CASES)
    cut(folder / "c1" / "lgemri.nrrd")
    assert f"damaged file in {folder / 'c1' / 'lgemri.nrrd'}" in roots.expect_error("LA", folder, *la_lists)


def test_fault_11_nrrd_with_flipped_bit(roots: Roots, la_lists: tuple[str, ...]) -> None:
    file = write_la_challenge(roots.root / "challenge", CASES) / "c1" / "lgemri.nrrd"
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 4
    file.write_bytes(content)
    assert f"damaged file in {file}" in roots.expect_error("LA", roots.root / "challenge", *la_lists)


def test_fault_11_uncompressed_nifti_named_nii_gz_is_read(
    roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]
) -> None:
    file = acdc_folder / "patient003" / "patient003_frame01.nii.gz"
    file.write_bytes(gzip.decompress(file.read_bytes()))
    dataset = roots.convert("ACDC", acdc_folder, *acdc_lists)
    expected = (case_arrays(1, classes=4)[0] * 100).astype(np.int16)
    image, _ = read_with_nnunet(dataset / "imagesTr" / "patient003_frame01_0000.nii.gz")
    np.testing.assert_array_equal(image, expected.transpose(2, 1, 0))


def external_link(file: h5py.File, secret: Path) -> None:
    file["image"] = h5py.ExternalLink(secret.with_suffix(".h5").name, "image")


def soft_link_to_external_link(file: h5py.File, secret: Path) -> None:
    file["other"] = h5py.ExternalLink(secret.with_suffix(".h5").name, "image")
    file["image"] = h5py.SoftLink("/other")


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("image", (20, 16, 8), np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((20, 16, 8), np.float32)
    layout[...] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "image", (20, 16, 8))
    file.create_virtual_dataset("image", layout)


@pytest.mark.parametrize("write", [external_link, soft_link_to_external_link, external_storage, virtual_dataset])
def test_fault_02_h5_with_voxels_in_another_file(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...], write: Callable[[h5py.File, Path], None]
) -> None:
    secret, file = h5_file(la_folder, "c2").with_name("secret.raw"), h5_file(la_folder, "c2")
    secret.write_bytes(case_arrays(0)[0].tobytes())
    write_h5(secret.with_suffix(".h5"), image=case_arrays(0)[0])
    with h5py.File(file, "w") as content:
        write(content, secret)
    assert f"voxels in another file in {file}" in roots.expect_error("LA", la_folder, *la_lists)


def test_fault_11_nrrd_with_voxels_in_another_file(roots: Roots, la_lists: tuple[str, ...]) -> None:
    file = write_la_challenge(roots.root / "challenge", CASES) / "c2" / "lgemri.nrrd"
    file.write_bytes(file.read_bytes().replace(b"encoding:", b"data file: /etc/passwd\nencoding:"))
    assert f"voxels in another file in {file}" in roots.expect_error("LA", roots.root / "challenge", *la_lists)


def test_fault_12_gt_missing(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    (acdc_folder / "patient003" / "patient003_frame12_gt.nii.gz").unlink()
    message = roots.expect_error("ACDC", acdc_folder, *acdc_lists)
    assert "label missing" in message
    assert "patient003_frame12" in message


def test_fault_12_only_4d(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    for file in (acdc_folder / "patient003").glob("*frame*"):
        file.unlink()
    message = roots.expect_error("ACDC", acdc_folder, *acdc_lists)
    assert "patient003_frame01" in message
    assert "patient003_frame12" in message


def test_fault_12_info_cfg_missing(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    (acdc_folder / "patient003" / "Info.cfg").unlink()
    dataset = roots.convert("ACDC", acdc_folder, *acdc_lists)
    assert (dataset / "imagesTr" / "patient003_frame12_0000.nii.gz").is_file()
    assert "Info.cfg" in record(dataset)["cases"]["patient003_frame12"]["notes"][0]


def test_fault_12_patient090_starts_at_frame_04(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    shutil.rmtree(acdc_folder / "patient090")
    write_acdc_challenge(acdc_folder, ["patient090"], frames=(4, 11))
    dataset = roots.convert("ACDC", acdc_folder, *acdc_lists)
    assert [name for name in file_names(dataset / "labelsTr") if "090" in name] == [
        "patient090_frame04.nii.gz",
        "patient090_frame11.nii.gz",
    ]


def test_fault_13_label_spacing_differs(
    roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    label = case_arrays(0, classes=4)[1]
    write_nifti(acdc_folder / "patient003" / "patient003_frame01_gt.nii.gz", label, zooms=(1.0, 1.0, 1.0))
    dataset = roots.convert("ACDC", acdc_folder, *acdc_lists)
    assert read_with_nnunet(dataset / "labelsTr" / "patient003_frame01.nii.gz")[1] == [8.0, 1.5, 1.5]
    assert "the image's is used (1: patient003_frame01)" in capsys.readouterr().err


def test_fault_13_sform_differs(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    image = (case_arrays(0)[0] * 100).astype(np.int16)
    write_nifti(acdc_folder / "patient005" / "patient005_frame01.nii.gz", image, sform_zooms=(3.0, 3.0, 3.0))
    dataset = roots.convert("ACDC", acdc_folder, *acdc_lists)
    assert read_with_nnunet(dataset / "imagesUn" / "patient005_frame01_0000.nii.gz")[1] == [8.0, 1.5, 1.5]
    assert "pixdim is used" in record(dataset)["cases"]["patient005_frame01"]["notes"][0]


def test_fault_13_label_shape_differs(roots: Roots, acdc_folder: Path, acdc_lists: tuple[str, ...]) -> None:
    write_nifti(acdc_folder / "patient003" / "patient003_frame01_gt.nii.gz", np.zeros((20, 16, 9), np.uint8))
    assert "image (20, 16, 8), label (20, 16, 9)" in roots.expect_error("ACDC", acdc_folder, *acdc_lists)


def test_fault_14_nominal_spacing_is_recorded_as_nominal(
    roots: Roots, acdc_lists: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = roots.convert("ACDC", write_acdc_h5(roots.root / "h5", PATIENTS), *acdc_lists)
    case = record(dataset)["cases"]["patient003_frame01"]
    assert (case["spacing_zyx_mm"], case["spacing_is_nominal"]) == ([10.0, 1.0, 1.0], True)
    assert "lengths in mm mean nothing" in capsys.readouterr().err


def test_fault_14_given_spacing_is_not_nominal(roots: Roots, acdc_lists: tuple[str, ...]) -> None:
    folder = write_acdc_h5(roots.root / "h5", PATIENTS)
    dataset = roots.convert("ACDC", folder, *acdc_lists, "--spacing", "8", "1.5", "1.25")
    case = record(dataset)["cases"]["patient003_frame01"]
    assert (case["spacing_source"], case["spacing_is_nominal"]) == ("given", False)
    assert read_with_nnunet(dataset / "imagesTr" / "patient003_frame01_0000.nii.gz")[1] == [8.0, 1.5, 1.25]


@pytest.mark.parametrize("taken", ["raw/Dataset501_LA", "raw/Dataset501_Other", "preprocessed/Dataset501_Old-name"])
def test_fault_15_id_taken(roots: Roots, la_folder: Path, la_lists: tuple[str, ...], taken: str) -> None:
    (roots.root / taken).mkdir()
    (roots.root / taken / "kept.txt").write_text("kept")
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert f"data set id taken in {roots.root / taken}" in message
    assert file_names(roots.root / taken) == ["kept.txt"]


def test_fault_15_preprocessed_folder_with_plans_is_taken(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...]
) -> None:
    roots.convert("LA", la_folder, *la_lists)
    shutil.rmtree(roots.raw / "Dataset501_LA")
    (roots.preprocessed / "Dataset501_LA" / "nnUNetPlans.json").write_text("{}")
    assert "data set id taken" in roots.expect_error("LA", la_folder, *la_lists)


def test_fault_15_folds_of_a_removed_data_set_are_replaced(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...]
) -> None:
    shutil.rmtree(roots.convert("LA", la_folder, *la_lists))
    assert roots.convert("LA", la_folder, *la_lists).is_dir()


def test_fault_16_kill_then_rerun(tmp_path: Path) -> None:
    folder = write_la_h5(tmp_path / "source", CASES)
    write_la_h5(folder, ["large"], shape=(192, 192, 48))  # still being written when the first small one is there
    splits_file = write_splits_file(tmp_path / "own.json", train=[*CASES, "large"])
    arguments = ("-d", "501", "--labeled", "2", "--splits", str(splits_file), "-np", "2")
    killed, straight = make_root_folders(tmp_path / "killed"), make_root_folders(tmp_path / "straight")
    process = kill_at_first_file(command_line("LA", folder, *arguments), killed)
    left = {path.name for path in (killed / "raw").iterdir()} - {".Dataset501.lock", ".Dataset501_LA.lock"}
    assert [name[:15] + name[-8:] for name in left] == [".Dataset501_LA..partial"]
    assert ends_within(process.pid, seconds=10)
    for roots in (killed, straight):
        assert run_command("LA", roots, folder, *arguments).returncode == 0
    assert content(killed) == content(straight)


@pytest.mark.parametrize("layout", ["h5", "challenge"])
def test_a_case_found_twice_is_refused_with_both_paths(roots: Roots, tmp_path: Path, acdc_lists, layout: str) -> None:
    source = tmp_path / "twice"
    write, below = (write_acdc_h5, "data") if layout == "h5" else (write_acdc_challenge, "training")
    (source / below).mkdir(parents=True)
    write(source, PATIENTS)
    write(source / below, PATIENTS[:1])
    message = roots.expect_error("ACDC", source, *acdc_lists)
    name = "patient003_frame01"
    (line,) = (line for line in message.splitlines() if f"{name} is also" in line)
    assert line.startswith("error: case found twice in ")
    assert line.count(f"{source / below}{os.sep}") == 1
    assert line.count(f"{source}{os.sep}") == 2
    assert message.count("case found twice") == 2


def test_a_data_set_with_models_of_an_earlier_one_is_refused(roots: Roots, la_folder: Path, la_lists) -> None:
    """Their folds would join the new ensemble, perhaps trained on what are test cases now."""
    roots.monkeypatch.setenv("nnUNet_results", str(roots.root / "results"))
    model = roots.root / "results" / "Dataset501_LA" / "nnUNetTrainer__nnUNetPlans__2d"
    (model / "fold_0").mkdir(parents=True)
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert f"old results in {model}" in message
    (model / "fold_0").rmdir()
    roots.convert("LA", la_folder, *la_lists)


def test_of_two_converters_into_one_id_the_second_is_refused(roots: Roots, la_folder: Path, la_lists) -> None:
    """While the first one works; also with another name, since nnU-Net finds data sets by their number."""
    with exclusive(roots.raw / "Dataset501"):
        assert "another process writes here" in roots.expect_error("LA", la_folder, *la_lists)
    assert not list(roots.raw.iterdir())
    roots.convert("LA", la_folder, *la_lists)


def kill_at_first_file(line: list[str], roots: Path) -> subprocess.Popen[bytes]:
    """Start the command in a new process group and kill its main process when the first case is written."""
    null = subprocess.DEVNULL
    process = subprocess.Popen(line, env=environment(roots), stdout=null, stderr=null, start_new_session=True)
    while process.poll() is None and not list((roots / "raw").glob(".*.partial/*/imagesTr/*")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    return process


def ends_within(group: int, seconds: float) -> bool:
    """Whether all processes of the group end within ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def content(roots: Path) -> dict[str, bytes]:
    return {str(file.relative_to(roots)): file.read_bytes() for file in sorted(roots.rglob("*")) if file.is_file()}


def test_fault_17_read_only_target(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    roots.monkeypatch.setattr(Path, "mkdir", refuse)
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert f"cannot write in {roots.raw}" in message
    assert "Read-only file system" in message


def test_fault_17_disk_space_is_checked_before_writing(
    roots: Roots, la_folder: Path, la_lists: tuple[str, ...]
) -> None:
    roots.monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 10**9 - 1000, 1000))
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert "disk full" in message
    assert "0 MB free" in message


def test_fault_17_disk_full_while_writing(roots: Roots, la_folder: Path, la_lists: tuple[str, ...]) -> None:
    def fail(path: Path, _: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    roots.monkeypatch.setattr(Path, "write_bytes", fail)
    message = roots.expect_error("LA", la_folder, *la_lists)
    assert "disk full" in message
    assert "MB needed" in message


@pytest.fixture(scope="module")
def small_disk() -> list[str]:
    """Prefix of a command line that mounts a file system of 1 MB on its first argument and runs the rest."""
    script = 'mount -t tmpfs -o size=1m none "$0" && "$@"; status=$?; ls -A "$0" >&2; exit $status'
    line = ["unshare", "-Urm", "sh", "-c", script]
    if shutil.which("unshare") is None or subprocess.run([*line, "/mnt", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    return line


def on_small_disk(small_disk: list[str], root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [*small_disk, str(root / "raw"), *command_line("LA", folder, "-d", "501", *arguments)]
    return subprocess.run(line, env=environment(root), capture_output=True, text=True, timeout=120)


def test_fault_17_small_disk_is_detected_before_writing(
    tmp_path: Path, la_lists: tuple[str, ...], small_disk: list[str]
) -> None:
    folder = write_la_h5(tmp_path / "source", CASES, shape=(64, 64, 32))
    completed = on_small_disk(small_disk, make_root_folders(tmp_path / "roots"), folder, *la_lists)
    assert completed.returncode == 2
    assert "1 MB free" in completed.stderr
    assert "converting" not in completed.stderr


def test_fault_17_disk_full_while_writing_leaves_no_file(
    tmp_path: Path, la_lists: tuple[str, ...], small_disk: list[str]
) -> None:
    """Boolean voxels are stored as float32, so the target is larger than the estimate."""
    noise = np.random.default_rng(0).random((192, 64, 64)) < 0.5
    for case in CASES:
        write_h5(h5_file(tmp_path / "source", case), image=noise, label=np.eye(192, 64)[..., None] * np.ones(64))
    completed = on_small_disk(
        small_disk, make_root_folders(tmp_path / "roots"), tmp_path / "source", *la_lists, "-np", "2"
    )
    assert completed.returncode == 2, completed.stderr
    assert "disk full" in completed.stderr
    assert "converting" in completed.stderr
    assert ".partial" not in completed.stderr
