"""checks, reading, splits, writing, workers and messages of the converters, function by function."""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from fake_data import case_arrays, write_h5, write_nifti, write_splits_file
from nnunetv2.utilities.crossval_split import generate_crossval_split
from run_converter import Roots, set_root_folders

from nnunetv2_crossmatch.dataset_conversion import Dataset501_LA, Dataset502_ACDC, writing
from nnunetv2_crossmatch.dataset_conversion.cases import Case, ConversionJob, FoundCases
from nnunetv2_crossmatch.dataset_conversion.checks import convert_image, convert_label, image_problems, label_problems
from nnunetv2_crossmatch.dataset_conversion.conversion import convert, make_parser
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, check_shapes, read_h5, read_nifti
from nnunetv2_crossmatch.dataset_conversion.splits import assign_roles, read_splits
from nnunetv2_crossmatch.dataset_conversion.workers import convert_case, convert_cases
from nnunetv2_crossmatch.dataset_conversion.writing import check_disk_space, new_dataset_name, patient_folds
from nnunetv2_crossmatch.errors import InputError

HERE = Path("here")
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    return set_root_folders(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("uint8", "uint8"), ("int16", "int16"), ("uint16", "uint16"), ("int32", "float32"), ("float64", "float32")],
)
def test_small_integers_stay_and_everything_else_becomes_float32(stored: str, kept: str) -> None:
    assert convert_image(np.array([0, 1], stored)).dtype == kept


def test_an_image_with_two_values_has_content() -> None:
    assert image_problems(np.array([[[0, 1]]]), HERE) == []


def test_every_unknown_label_up_to_eight_is_listed() -> None:
    found = [label_problems(np.arange(count), 2, HERE)[0].detail for count in (8, 9)]
    assert found[0] == f"values {', '.join(f'{i} (1 voxels)' for i in range(8))}; expected 0 to 1"
    assert found[1] == f"values {', '.join(f'{i} (1 voxels)' for i in range(8))}, ...; expected 0 to 1"


def test_a_label_of_one_and_255_is_no_full_mask() -> None:
    assert label_problems(np.array([0, 1, 255]), 2, HERE)
    assert not label_problems(np.array([0, 255]), 2, HERE)
    assert not label_problems(np.array([255]), 2, HERE)
    assert label_problems(np.array([0, 255]), 3, HERE)


def test_labels_become_uint8_and_a_missing_foreground_is_noted() -> None:
    for label, expected, notes in [
        ([0.0, 2.0], [0, 2], ()),
        ([0, 0], [0, 0], ("label without foreground",)),
    ]:
        small, found = convert_label(np.array(label), 3)
        assert (small.dtype, small.tolist(), found) == (np.uint8, expected, notes)
    assert convert_label(np.array([0, 255]), 2)[0].tolist() == [0, 1]


@pytest.mark.parametrize("page", [b"<html><body>", b"<!DOCTYPE html><title>"])
def test_either_beginning_of_a_web_page_is_recognized(tmp_path: Path, page: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(page)
    with pytest.raises(InputError, match=r"web page instead of data in .*x\.h5: .*page\. Fix: download it"):
        read_h5(tmp_path / "x.h5", "xyz", Spacing((1, 1, 1), "given"), True)


def test_an_xml_file_is_damaged_rather_than_a_web_page(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"<?xml version='1.0'?>")
    with pytest.raises(InputError, match="damaged file"):
        read_h5(tmp_path / "x.h5", "xyz", Spacing((1, 1, 1), "given"), True)


def test_every_missing_key_is_named_with_a_fix(tmp_path: Path) -> None:
    file = write_h5(tmp_path / "x.h5", raw=np.ones(2))
    with pytest.raises(InputError, match=r"no image and no label; keys found: raw\. Fix: store the arrays as"):
        read_h5(file, "xyz", Spacing((1, 1, 1), "given"), True)


@pytest.mark.parametrize(("source", "notes"), [("nominal", 1), ("published", 0)])
def test_h5_volumes_get_the_spacing_that_is_given_in_lps(tmp_path: Path, source: str, notes: int) -> None:
    file = write_h5(tmp_path / "x.h5", image=np.ones((2, 3, 4)), label=np.ones((2, 3, 4)))
    volume = read_h5(file, "zyx", Spacing((1.0, 2.0, 3.0), source), True)
    np.testing.assert_array_equal(volume.affine, np.diag([-1.0, -2.0, 3.0, 1.0]))
    assert (volume.image.shape, volume.label.shape, len(volume.notes)) == ((4, 3, 2), (4, 3, 2), notes)


def test_masks_of_truth_values_are_numbers_and_complex_ones_are_not() -> None:
    check_shapes(np.ones((2, 2, 2)), np.ones((2, 2, 2), bool), HERE)
    with pytest.raises(InputError, match="voxels are not numbers"):
        check_shapes(np.ones((2, 2, 2)), np.ones((2, 2, 2), complex), HERE)


def test_headers_that_differ_by_rounding_are_not_noted(tmp_path: Path) -> None:
    image, label = case_arrays(0)
    write_nifti(tmp_path / "image.nii.gz", image, (1.5, 1.5, 8.0), sform_zooms=(1.5004, 1.5, 8.0))
    write_nifti(tmp_path / "label.nii.gz", label, (1.5, 1.5004, 8.0))
    assert read_nifti(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz").notes == ()


def test_headers_that_differ_by_hundredths_are_noted(tmp_path: Path) -> None:
    image, label = case_arrays(0)
    write_nifti(tmp_path / "image.nii.gz", image, (1.5, 1.5, 8.0), sform_zooms=(1.51, 1.5, 8.0))
    write_nifti(tmp_path / "label.nii.gz", label, (1.5, 1.51, 8.0))
    assert len(read_nifti(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz").notes) == 2


def test_an_infinite_spacing_is_impossible(tmp_path: Path) -> None:
    write_nifti(tmp_path / "x.nii.gz", np.ones((2, 2, 2), np.int16))
    content = bytearray(gzip.decompress((tmp_path / "x.nii.gz").read_bytes()))
    content[80:84] = np.float32(np.inf).tobytes()  # pixdim[1]
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(InputError, match="impossible voxel size"):
        read_nifti(tmp_path / "x.nii.gz", None)


def test_a_case_of_a_patient_that_is_listed_by_frame_keeps_the_role_of_the_frame() -> None:
    patients = {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2"}
    roles, missing = assign_roles(patients, {"labeled": ["p1_a"], "test": ["p1", "p2", "p3"]}, ["p2_b"], True, HERE)
    assert roles == {"p1_a": "labeled", "p1_b": "test", "p2_a": "test"}
    assert missing == ["p3", "p2_b"]


def test_missing_and_unlisted_cases_are_reported_together() -> None:
    with pytest.raises(InputError) as caught:
        assign_roles({"a": "a", "x": "x"}, {"labeled": ["a", "b"]}, [], False, HERE)
    assert [(problem.what, problem.detail) for problem in caught.value.problems] == [
        ("cases that no list names", "x"),
        ("1 listed cases missing", "b"),
    ]
    assert "--allow-missing" in caught.value.problems[1].fix


def test_names_in_lists_lose_spaces_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    file = write_splits_file(tmp_path / "s.json", labeled=[" a ", "", "b"], val=["c"])
    assert read_splits(file, 2, str) == {"labeled": ["a", "b"], "unlabeled": [], "val": ["c"], "test": []}


def test_every_repeated_name_of_every_list_is_reported(tmp_path: Path) -> None:
    file = write_splits_file(tmp_path / "s.json", labeled=["a"], test=["x", "x", "y", "y"], val=["z", "z"])
    with pytest.raises(InputError) as caught:
        read_splits(file, None, str)
    assert {(problem.what, problem.detail) for problem in caught.value.problems} == {
        ('names repeated in "test"', "x, y"),
        ('names repeated in "val"', "z"),
    }


def test_an_empty_plain_list_is_no_labeled_case(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 are listed, at least 1 asked for"):
        read_splits(write_splits_file(tmp_path / "s.json", labeled=[]), None, str)


def test_folds_equal_those_of_nnunet_if_each_patient_has_one_case() -> None:
    cases = [f"c{i:02d}" for i in range(11)]
    assert patient_folds({case: case for case in cases}) == generate_crossval_split(cases, seed=12345, n_splits=5)


@pytest.mark.parametrize(("patients", "folds"), [(0, 0), (1, 0), (2, 2), (4, 4), (5, 5), (6, 5)])
def test_there_are_five_folds_or_as_many_as_patients(patients: int, folds: int) -> None:
    assert len(patient_folds({f"c{i}": f"c{i}" for i in range(patients)})) == folds


def test_a_conversion_needs_a_fifth_more_space_than_its_sources(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: DiskUsage(10**8, 0, 12 * 10**6))
    assert check_disk_space(10**7) == 12 * 10**6
    with pytest.raises(InputError, match="about 13 MB needed, 12 MB free"):
        check_disk_space(10**7 + 10**6)


@pytest.mark.parametrize("dataset_id", [0, 1000, -1])
def test_ids_outside_1_to_999_are_impossible(roots: Roots, dataset_id: int) -> None:
    with pytest.raises(InputError, match=f"impossible data set id: -d {dataset_id}"):
        new_dataset_name(dataset_id, "LA")


def test_the_first_and_the_last_id_are_possible(roots: Roots) -> None:
    assert [new_dataset_name(number, "LA") for number in (1, 999)] == ["Dataset001_LA", "Dataset999_LA"]


def test_results_of_the_same_name_do_not_take_an_id_but_those_of_another_do(roots: Roots) -> None:
    roots.monkeypatch.setenv("nnUNet_results", str(roots.root / "results"))
    (roots.root / "results" / "Dataset007_LA").mkdir(parents=True)
    assert new_dataset_name(7, "LA") == "Dataset007_LA"
    with pytest.raises(InputError, match="it carries the id 007"):
        new_dataset_name(7, "ACDC")


def test_a_preprocessed_folder_with_nothing_but_splits_may_stay(roots: Roots) -> None:
    folder = roots.preprocessed / "Dataset007_LA"
    folder.mkdir()
    (folder / "splits_final.json").write_text("[]")
    assert new_dataset_name(7, "LA") == "Dataset007_LA"
    with pytest.raises(InputError, match="data set id taken"):
        new_dataset_name(7, "ACDC")


def h5_job(root: Path, role: str, case: str = "a") -> ConversionJob:
    """A job for a volume whose label is 255 where the image is bright."""
    image, label = case_arrays(0)
    file = write_h5(root / f"{case}.h5", image=image, label=label * 255)
    (root / "target").mkdir(exist_ok=True)
    return ConversionJob(
        Case(case, "patient", file, file, "h5", ("known",)), role, 2, Dataset501_LA.read_case, root / "target"
    )


def test_the_entry_of_a_case_contains_sources_and_notes(tmp_path: Path) -> None:
    entry = convert_case(h5_job(tmp_path, "labeled")).entry
    content = (tmp_path / "a.h5").read_bytes()
    assert entry["sources"] == [
        {"file": str(tmp_path / "a.h5"), "bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    ]
    assert entry["notes"] == ["known", "label value 255 mapped to 1"]
    assert (entry["role"], entry["patient"], entry["spacing_source"]) == ("labeled", "patient", "published")


def test_the_label_of_an_unlabeled_case_is_neither_read_nor_written(tmp_path: Path) -> None:
    entry = convert_case(h5_job(tmp_path, "unlabeled")).entry
    assert entry["notes"] == ["known"]
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["imagesUn"]


def test_entries_are_sorted_by_case(tmp_path: Path) -> None:
    jobs = [h5_job(tmp_path, "labeled", case) for case in "ba"]
    assert list(convert_cases(jobs, 1)) == ["a", "b"]


def test_sources_of_a_case_are_image_and_label_each_once() -> None:
    two, one = (Case("a", "p", Path("i"), label, "x") for label in (Path("l"), Path("i")))
    assert (two.sources("val"), two.sources("unlabeled"), one.sources("test")) == (
        [Path("i"), Path("l")],
        [Path("i")],
        [Path("i")],
    )


@pytest.mark.parametrize("number", ["0", "-1"])
def test_less_than_one_process_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser(Dataset501_LA.DATASET, "", "").parse_args(["-i", ".", "-d", "1", "-np", number])
    assert f"{number} is less than 1" in capsys.readouterr().err


def acdc(patients: int, roots: Roots, **lists: object) -> argparse.Namespace:
    """Options for ``patients`` patients of two equal, tiny frames each."""
    image, label = case_arrays(0, 4)
    for number in range(patients):
        for frame in (1, 2):
            file = roots.root / "h5" / f"patient{number:03d}_frame{frame:02d}.h5"
            write_h5(file, image=image.transpose(2, 1, 0), label=label.transpose(2, 1, 0))
    own = write_splits_file(roots.root / "own.json", **lists)
    line = ["-i", str(roots.root / "h5"), "-d", "502", "-np", "1", "--splits", str(own), "--allow-missing"]
    return make_parser(Dataset502_ACDC.DATASET, "", "").parse_args(line)


def test_the_summary_lists_cases_patients_and_warnings(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"patient{i:03d}" for i in range(3)]
    options = acdc(3, roots, labeled=names[:1], unlabeled=names[1:], test=[f"patient{i}" for i in range(900, 907)])
    target = convert(Dataset502_ACDC.DATASET, options)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"Dataset502_ACDC written to {target}"
    assert [line.split() for line in lines[1:3]] == [
        "labeled 2 cases of 1 patients imagesTr".split(),
        "unlabeled 4 cases of 2 patients imagesUn".split(),
    ]
    assert lines[3] == "Next: nnUNetv2_plan_and_preprocess -d 502 --verify_dataset_integrity"
    missing = ", ".join(f"patient{i}" for i in range(900, 905))
    nominal, *others = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert nominal.startswith("warning: voxel size unknown")
    assert nominal.endswith("(6: patient000_frame01, patient000_frame02, patient001_frame01, patient001_frame02, "
                            "patient002_frame01, ...)")  # fmt: skip
    assert others == [
        f"warning: skipped, since the folder lacks them: 7: {missing}, ...",
        "warning: one labeled patient cannot be split for cross-validation: train with fold all",
    ]
    record = json.loads((target / "conversion.json").read_text())
    assert (record["dataset"], record["folds"], len(record["missing"])) == ("Dataset502_ACDC", 0, 7)
    assert record["splits"] == str(roots.root / "own.json")


@pytest.mark.parametrize(
    ("arguments", "spacing"),
    [
        ((), Spacing((1.0, 1.0, 10.0), "nominal")),
        (("--spacing", "0.5", "0.25", "0.125"), Spacing((0.125, 0.25, 0.5), "given")),
    ],
)
def test_a_spacing_may_be_given_in_any_size(roots: Roots, arguments: tuple[str, ...], spacing: Spacing) -> None:
    converted = []
    roots.monkeypatch.setattr(Dataset502_ACDC, "convert", lambda dataset, _: converted.append(dataset))
    roots.convert("ACDC", roots.root, *arguments)
    assert converted[0].read_case.keywords == {"h5_spacing": spacing}


def test_a_spacing_that_is_not_positive_is_refused(roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        roots.convert("ACDC", roots.root, "--spacing", "8", "0", "1", dataset_id=502)
    assert "--spacing: voxel sizes must be positive" in capsys.readouterr().err


def test_frames_of_h5_files_are_counted_by_patient(tmp_path: Path) -> None:
    for name in ("patient001_frame01", "patient001_frame12", "patient002_frame01"):
        (tmp_path / f"{name}.h5").touch()
    found = Dataset502_ACDC.find_h5(tmp_path)
    assert [(case.identifier, case.patient) for case in found.cases][1:] == [
        ("patient001_frame12", "patient001"),
        ("patient002_frame01", "patient002"),
    ]
    assert found.incomplete == ["patient002 (1 of 2 frames)"]


def test_hidden_folders_and_other_names_are_no_cases(tmp_path: Path) -> None:
    for name in (".trash", "c1"):
        write_h5(tmp_path / name / "mri_norm2.h5", image=np.ones(1))
    (tmp_path / "patient01x").mkdir()
    assert [case.identifier for case in Dataset501_LA.find_h5(tmp_path).cases] == ["c1"]
    assert Dataset502_ACDC.find_challenge(tmp_path) == FoundCases([], [])
