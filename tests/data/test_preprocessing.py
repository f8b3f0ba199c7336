"""Preprocessing of unlabeled cases: voxels equal nnU-Net's, up-to-date cases are kept, nnU-Net's loader reads them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SHAPE_ZYX, TinyDataset, assert_bar, blob_case, write_volume
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.data import case_preprocessing, manifest
from nnunetv2_crossmatch.data.case_preprocessing import (
    NnunetObjects,
    _read,
    constant_channels,
    empty_class_locations,
    run_jobs,
)
from nnunetv2_crossmatch.data.manifest import (
    ENDINGS,
    CaseRecord,
    file_crc32,
    file_info,
    read_manifest,
    sources_changed,
)
from nnunetv2_crossmatch.data.preprocessing import is_preprocessed, preprocess_unlabeled, trainable_cases
from nnunetv2_crossmatch.data.raw_cases import RawCase, find_unlabeled_cases, leak_problems
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.folders import manifest_file

CASES = ["free_04", "free_05", "free_06", "free_07"]
CONFIGURATIONS = ["2d", "3d_fullres"]


def plans_of(tiny: TinyDataset) -> PlansManager:
    return PlansManager(str(tiny.plans_file))


def folder_of(tiny: TinyDataset, configuration: str = "2d") -> Path:
    return tiny.preprocessed / f"nnUNetPlans_{configuration}_unlabeled"


def load(tiny: TinyDataset, configuration: str, case: str):
    folder = str(folder_of(tiny, configuration))
    return infer_dataset_class(folder)(folder).load_case(case)


def three_channels(tiny: TinyDataset) -> None:
    """Set three channels in dataset.json and plans; the images are unchanged."""
    for file in (tiny.raw / "dataset.json", tiny.preprocessed / "dataset.json"):
        names = {str(channel): name for channel, name in enumerate("RGB")}
        file.write_text(json.dumps({**json.loads(file.read_text()), "channel_names": names}))
    plans = json.loads(tiny.plans_file.read_text())
    for entry in ("normalization_schemes", "use_mask_for_norm"):
        plans["configurations"]["2d"][entry] *= 3
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities.update(dict.fromkeys("12", intensities["0"]))
    tiny.plans_file.write_text(json.dumps(plans))


def test_no_more_jobs_wait_than_there_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that wait take memory, and a killed process is one of those whose cases are named."""
    submitted: list[Any] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, processes: int, **_: Any) -> None:
            super().__init__(processes)

        def submit(self, do: Any, *arguments: Any) -> Future:
            submitted.append(arguments)
            return super().submit(lambda: arguments)

    monkeypatch.setattr(case_preprocessing, "ProcessPoolExecutor", Pool)
    ahead = [len(submitted) - done for done, _ in enumerate(run_jobs(list(range(7)), 2))]
    assert max(ahead) == 2
    assert sorted(submitted) == [(job,) for job in range(7)]


@pytest.mark.parametrize("failing", range(8))
def test_what_finished_beside_a_failed_job_comes_before_its_error(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool(ThreadPoolExecutor):
        def __init__(self, processes: int, **_: Any) -> None:
            super().__init__(processes)

        def submit(self, do: Any, *arguments: Any) -> Future:
            future: Future = Future()
            if arguments == (failing,):
                future.set_exception(OSError("no space"))
            else:
                future.set_result("finished")
            return future

    monkeypatch.setattr(case_preprocessing, "ProcessPoolExecutor", Pool)
    results = run_jobs(list(range(8)), 8)
    assert {next(results)[0] for _ in range(7)} == set(range(8)) - {failing}
    with pytest.raises(OSError, match="no space"):
        next(results)


@pytest.mark.parametrize(
    ("message", "printed", "told"),
    [
        ("in sitk.cxx:\n\nITK ERROR: no header\n", "a warning\n", "ITK ERROR: no header"),  # libraries end with it
        ("", "bad magic number\nin reader 3\n", "bad magic number"),  # as NRRD's reader, which only prints
        ("", "", "RuntimeError"),
    ],
)
def test_the_reason_of_an_unreadable_image_is_what_its_reader_says(
    message: str, printed: str, told: str, tmp_path: Path, capsys
) -> None:
    def read_images(files: list[str]) -> None:
        print(printed, end="")
        raise RuntimeError(message)

    reader = SimpleNamespace(image_reader_writer_class=lambda: SimpleNamespace(read_images=read_images))
    file = tmp_path / "a_0000.nrrd"
    file.touch()
    with pytest.raises(InputError, match=f"image unreadable in .*{file.name}: {told}\\. Fix"):
        _read(NnunetObjects(reader, None, {}), RawCase("a", (file,)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_voxels_equal_those_of_nnunets_run_case(tiny_prepared: TinyDataset, configuration: str) -> None:
    plans = plans_of(tiny_prepared)
    manager = plans.get_configuration(configuration)
    raw = tiny_prepared.raw / "imagesUn" / "free_04_0000.nii.gz"
    dataset_json = str(tiny_prepared.preprocessed / "dataset.json")
    data, seg, _ = manager.preprocessor_class(False).run_case([str(raw)], None, plans, manager, dataset_json)
    ours, our_seg, _, _ = load(tiny_prepared, configuration, "free_04")
    assert np.array_equal(ours[:], data)
    assert np.array_equal(our_seg[:], seg)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_nnunets_loader_makes_a_batch(tiny_prepared: TinyDataset, configuration: str) -> None:
    folder = str(folder_of(tiny_prepared, configuration))
    plans = plans_of(tiny_prepared)
    patch = plans.get_configuration(configuration).patch_size
    labels = plans.get_label_manager(json.loads((tiny_prepared.raw / "dataset.json").read_text()))
    loader = nnUNetDataLoader(infer_dataset_class(folder)(folder), 2, patch, patch, labels, 0.33)
    assert loader.generate_train_batch()["data"].shape == (2, 1, *patch)


def test_all_cases_are_ready_for_every_configuration(tiny_prepared: TinyDataset, monkeypatch) -> None:
    for name, value in tiny_prepared.variables.items():
        monkeypatch.setenv(name, value)
    for configuration in CONFIGURATIONS:
        assert trainable_cases(plans_of(tiny_prepared), configuration) == CASES


def test_cases_are_ready_without_raw_images(prepared_copy: TinyDataset) -> None:
    shutil.rmtree(prepared_copy.root / "raw")
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES


def test_is_preprocessed_needs_the_manifest(prepared_copy: TinyDataset) -> None:
    assert is_preprocessed(plans_of(prepared_copy), "2d")
    (prepared_copy.preprocessed / "nnUNetPlans_2d_unlabeled.json").unlink()
    assert not is_preprocessed(plans_of(prepared_copy), "2d")


def test_segmentation_of_an_unlabeled_case_is_smaller_than_1000_bytes(tiny_prepared: TinyDataset) -> None:
    assert (folder_of(tiny_prepared) / "free_04_seg.b2nd").stat().st_size < 1000


def test_manifest_contains_size_and_checksum_of_every_file(tiny_prepared: TinyDataset) -> None:
    folder = folder_of(tiny_prepared)
    manifest = read_manifest(folder.with_name(folder.name + ".json"), "")
    for case, record in manifest.cases.items():
        for ending in ENDINGS:
            file = folder / (case + ending)
            assert record.files[ending].size == file.stat().st_size
            assert record.files[ending].crc32 == file_crc32(file)


def test_second_run_writes_nothing_and_shows_no_bar(prepared_copy: TinyDataset, capsys) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in folder_of(prepared_copy).iterdir()}
    preprocess_unlabeled(prepared_copy.name, "nnUNetPlans", ["2d"], 1)
    assert {file.name: file.stat().st_mtime_ns for file in folder_of(prepared_copy).iterdir()} == before
    assert capsys.readouterr().err == ""  # nor one of the verification, which takes no two seconds


def test_a_scratch_folder_that_cannot_be_removed_does_no_harm(prepared_copy: TinyDataset, monkeypatch) -> None:
    """As on a network file system while something in it is open."""
    remove = os.rmdir

    def held(folder: Any, **options: Any) -> None:
        if "unlabeled" in str(folder):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(folder))
        remove(folder, **options)

    monkeypatch.setattr(os, "rmdir", held)
    preprocess_unlabeled(prepared_copy.name, "nnUNetPlans", ["2d"], 1)
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES


def test_copied_raw_images_with_new_times_are_up_to_date(prepared_copy: TinyDataset) -> None:
    for file in (prepared_copy.raw / "imagesUn").iterdir():
        os.utime(file, (1, 1))
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES


def test_only_changed_damaged_and_new_cases_are_redone_and_removed_ones_dropped(
    prepared_copy: TinyDataset, capfd
) -> None:
    raw, folder = prepared_copy.raw / "imagesUn", folder_of(prepared_copy)
    write_volume(blob_case(50)[0], raw / "free_04_0000.nii.gz")
    with (folder / "free_05.b2nd").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    (raw / "free_06_0000.nii.gz").unlink()
    write_volume(blob_case(51)[0], raw / "free_08_0000.nii.gz")
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    preprocess_unlabeled(prepared_copy.name, "nnUNetPlans", ["2d"], 2)
    told = capfd.readouterr()
    assert_bar(told.err, "Preprocessing unlabeled cases", 3)
    assert told.out.split() == f"{prepared_copy.name} 2d: 3 of 4 unlabeled cases to preprocess".split()  # not nnU-Net's
    after = {file.name: file.stat().st_ino for file in folder.iterdir() if file.name.endswith("7.b2nd")}
    assert after == {"free_07.b2nd": before["free_07.b2nd"]}
    assert trainable_cases(plans_of(prepared_copy), "2d") == ["free_04", "free_05", "free_07", "free_08"]
    assert not list(folder.glob("free_06*"))


def test_cases_stay_up_to_date_with_another_patch_size_or_batch_size(prepared_copy: TinyDataset) -> None:
    plans = plans_of(prepared_copy)
    plans.plans["configurations"]["2d"].update(patch_size=[8, 8], batch_size=7)
    assert trainable_cases(plans, "2d") == CASES


def test_cascade_stages_are_omitted_by_default(prepared_copy: TinyDataset, capsys) -> None:
    plans = json.loads(prepared_copy.plans_file.read_text())
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres", "data_identifier": "other"}
    plans["configurations"]["3d_cascade_fullres"] = cascade
    prepared_copy.plans_file.write_text(json.dumps(plans))
    preprocess_unlabeled(prepared_copy.name, "nnUNetPlans", [], 1)
    assert "cascade" not in capsys.readouterr().out


def test_configurations_that_share_their_data_are_preprocessed_once(prepared_copy: TinyDataset, capsys) -> None:
    plans = json.loads(prepared_copy.plans_file.read_text())
    plans["configurations"]["2d_small"] = {"inherits_from": "2d", "batch_size": 1}
    prepared_copy.plans_file.write_text(json.dumps(plans))
    preprocess_unlabeled(prepared_copy.name, "nnUNetPlans", [], 1)
    assert "2d_small" not in capsys.readouterr().out


def test_class_locations_are_empty_with_an_ignore_label(tiny_dataset: TinyDataset) -> None:
    description = {"labels": {"background": 0, "blob": 1, "ignore": 2}}
    locations = empty_class_locations(plans_of(tiny_dataset).get_label_manager(description))
    assert locations == {1: [], (-1, 0, 1): []}


def test_class_locations_of_regions_are_empty(tiny_dataset: TinyDataset) -> None:
    description = {"labels": {"background": 0, "all": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    assert empty_class_locations(plans_of(tiny_dataset).get_label_manager(description)) == {(1, 2): [], 2: []}


def test_one_file_may_contain_all_channels_if_the_labeled_files_do(tiny_copy: TinyDataset) -> None:
    """As colour images and 4d volumes do."""
    three_channels(tiny_copy)
    for seed, file in enumerate(sorted([*tiny_copy.raw.glob("images[TU][rn]/*")])):
        write_volume(np.stack([blob_case(seed)[0], *np.random.default_rng(seed).normal(size=(2, *SHAPE_ZYX))]), file)
    preprocess_unlabeled(tiny_copy.name, "nnUNetPlans", ["2d"], 1)
    assert load(tiny_copy, "2d", "free_04")[0].shape[0] == 3


@pytest.mark.parametrize(("files", "of"), [("a", "aaaaaa"), ("ab", "aaabbb"), ("abcdef", "abcdef")])
def test_a_constant_channel_is_told_with_the_file_that_has_it(files: str, of: str) -> None:
    case = RawCase("x", tuple(Path(f"{file}.png") for file in files))
    voxels = np.stack([np.array([[[0, 1 - channel % 2]]]) for channel in range(len(of))])
    told = [f"{of[channel]}.png: channel {channel} has one value only, and tells nothing" for channel in (1, 3, 5)]
    assert constant_channels(voxels, case) == told


def test_spacing_file_of_an_image_belongs_to_its_case(tmp_path: Path) -> None:
    for name in ("a_0000.tif", "a.json", "b.c_0000.tif", "b.c.json"):
        (tmp_path / name).touch()
    assert [file.name for file in find_unlabeled_cases(tmp_path, ".tif", {1})["b.c"].sources] == [
        "b.c_0000.tif",
        "b.c.json",
    ]


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "a_0000.nrrd").touch()
    assert list(find_unlabeled_cases(tmp_path, ".nrrd", {1})) == ["a"]


def test_neither_an_image_nor_a_folder_with_the_name_of_a_case_is_taken_for_its_sidecar(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a.json"):
        (tmp_path / name).touch()
    assert [file.name for file in find_unlabeled_cases(tmp_path, ".nii.gz", {1})["a"].sidecars] == ["a.json"]
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "a.old").mkdir()
    with pytest.raises(InputError) as caught:
        find_unlabeled_cases(tmp_path, ".nii.gz", {1})
    found = {(problem.what, Path(problem.where).name) for problem in caught.value.problems}
    assert found == {("no channel number", "a.nii.gz"), ("not an image", "a.old")}


def test_checksums_are_computed_for_files_of_equal_size_only(tmp_path: Path) -> None:
    read_files: list[str] = []

    def crc(file: Path) -> int:
        read_files.append(file.name)
        return file_crc32(file)

    for name, content in (("a", b"x"), ("b", b"yy"), ("test", b"zz")):
        (tmp_path / name).write_bytes(content)
    cases = [RawCase(name, (tmp_path / name,)) for name in "ab"]
    assert leak_problems(cases, {"test": [tmp_path / "test"]}, crc, crc) == []
    assert read_files == ["test", "b"]


def test_the_bar_of_the_verification_knows_its_end(prepared_copy: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(manifest, "tqdm", lambda checked, *_, total, **__: told.append(total) or checked)
    folder = folder_of(prepared_copy)
    assert manifest.find_damaged_cases(folder, read_manifest(manifest_file(folder), "")) == {}
    assert told == [len(CASES)]


def gone_behind_a_link(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.with_name("gone"))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda file: None, False),
        (lambda file: os.utime(file, (1, 1)), False),
        (gone_behind_a_link, False),
        (lambda file: file.write_bytes(b"other"), True),
        (lambda file: file.write_bytes(b"longer than it"), True),
    ],
)
def test_the_content_of_a_raw_file_tells_whether_it_has_changed(tmp_path: Path, change: Any, changed: bool) -> None:
    files = [tmp_path / "x_0000.png", tmp_path / "x_0001.png"]
    for file in files:
        file.write_bytes(b"voxel")
    record = CaseRecord({}, {file.name: file_info(file) for file in files})
    assert sources_changed(record, files[:1])
    assert sources_changed(record, [*files, tmp_path / "x.json"])
    assert sources_changed(record, [files[0], tmp_path / "y_0001.png"])
    change(files[1])
    assert sources_changed(record, files) == changed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 9}',
        b'{"format": 1, "plans_hash": "", "package_version": "", "cases": {"../x": {"files": {}, "sources": {}}}}',
    ],
)
def test_a_broken_manifest_is_a_clean_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="manifest unreadable"):
        read_manifest(tmp_path / "manifest.json", "do it again")


def test_a_manifest_of_which_nothing_is_told_is_that_of_a_run_that_ended() -> None:
    empty = manifest.Manifest("hash", "0.1")
    assert (empty.cases, empty.asked_for, empty.ended, empty.made_with) == ({}, (), True, "")
    assert empty.missing() == []


def test_another_run_replaces_a_broken_manifest(prepared_copy: TinyDataset) -> None:
    (prepared_copy.preprocessed / "nnUNetPlans_2d_unlabeled.json").write_text("{")
    preprocess_unlabeled(prepared_copy.name, "nnUNetPlans", ["2d"], 2)
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES
