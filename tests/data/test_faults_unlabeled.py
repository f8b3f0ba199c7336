"""Faults 18 to 25: errors name the unlabeled images concerned, and finished cases are kept."""

from __future__ import annotations

import copy
import errno
import functools
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from conftest import SHAPE_ZYX, TinyDataset, blob_case, piped_output, write_volume
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_preprocessing import CASES, folder_of, load, plans_of, three_channels

import nnunetv2_crossmatch.data.manifest as manifest_module
import nnunetv2_crossmatch.data.preprocessing as preprocessing
from nnunetv2_crossmatch.data import case_preprocessing
from nnunetv2_crossmatch.data.case_preprocessing import (
    DatasetConfiguration,
    Job,
    NnunetObjects,
    nnunet_objects,
    preprocess_case,
    read_and_check,
)
from nnunetv2_crossmatch.data.manifest import file_crc32, read_manifest
from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled, trainable_cases
from nnunetv2_crossmatch.data.raw_cases import RawCase, find_unlabeled_cases, labeled_and_test_images, leak_problems
from nnunetv2_crossmatch.data.unlabeled_folder import Reading, disk_errors_reported, unlabeled_folder_of
from nnunetv2_crossmatch.errors import InputError

COMMAND = "nnUNetv2_crossmatch_preprocess"


def images_folder(tiny: TinyDataset) -> Path:
    return tiny.raw / "imagesUn"


def preprocess(tiny: TinyDataset) -> None:
    preprocess_unlabeled(tiny.name, "nnUNetPlans", ["2d"], 2)


def preprocessing_error(tiny: TinyDataset) -> str:
    with pytest.raises(InputError) as error:
        preprocess(tiny)
    return str(error.value)


def training_error(tiny: TinyDataset) -> str:
    with pytest.raises(InputError) as error:
        trainable_cases(plans_of(tiny), "2d")
    return str(error.value)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_18_every_misnamed_file_is_listed_in_one_run(tiny_copy: TinyDataset) -> None:
    for name in ("bare.nii.gz", "other_0000.nrrd", "two_0000.nii.gz", "two_0001.nii.gz", "second_0001.nii.gz"):
        shutil.copy(images_folder(tiny_copy) / "free_04_0000.nii.gz", images_folder(tiny_copy) / name)
    message = preprocessing_error(tiny_copy)
    assert "no channel number" in message
    assert "bare.nii.gz" in message
    assert "wrong file ending" in message
    assert "other_0000.nrrd" in message
    assert "channels 0000, 0001 found, 0000 expected" in message
    assert "channels 0001 found, 0000 expected" in message
    assert len(message.splitlines()) == 4


def test_18_a_file_with_several_channels_is_named(tiny_copy: TinyDataset) -> None:
    write_volume(np.stack([blob_case(1)[0]] * 3), images_folder(tiny_copy) / "four_0000.nii.gz")
    assert "3 found, 1 expected" in reading_error(tiny_copy, "four_0000.nii.gz")


def test_18_a_missing_channel_file_is_named(tiny_copy: TinyDataset) -> None:
    for file in (tiny_copy.raw / "imagesTr").glob("*_0000.nii.gz"):
        shutil.copy(file, str(file).replace("_0000", "_0001"))
    message = preprocessing_error(tiny_copy)
    assert message.count("channels 0000 found, 0000, 0001 expected") == 4


def test_18_a_missing_first_channel_is_named_without_labeled_images(tiny_copy: TinyDataset) -> None:
    shutil.rmtree(tiny_copy.raw / "imagesTr")
    description = tiny_copy.preprocessed / "dataset.json"
    content = {**json.loads(description.read_text()), "channel_names": {"0": "T1", "1": "T2"}}
    description.write_text(json.dumps(content))
    for file in list(images_folder(tiny_copy).iterdir()):
        file.rename(str(file).replace("free_05_0000", "free_05_0001"))
    assert "free_05: channels 0001 found, 0000 or 0000, 0001 expected" in preprocessing_error(tiny_copy)


@pytest.mark.parametrize("folder", ["imagesTr", "imagesVal", "imagesTs"])
def test_19_an_unlabeled_case_named_like_a_labeled_or_test_case_is_refused(tiny_copy: TinyDataset, folder: str) -> None:
    write_volume(blob_case(70)[0], images_folder(tiny_copy) / "twin_0000.nii.gz")
    write_volume(blob_case(71)[0], tiny_copy.raw / folder / "twin_0000.nii.gz")
    message = preprocessing_error(tiny_copy)
    assert "imagesUn/twin_0000.nii.gz" in message
    assert f"{folder}/twin_0000.nii.gz" in message


def test_19_an_unlabeled_image_with_the_bytes_of_a_test_image_is_refused(tiny_copy: TinyDataset) -> None:
    shutil.copy(tiny_copy.raw / "imagesTs" / "test_08_0000.nii.gz", images_folder(tiny_copy) / "new_0000.nii.gz")
    message = preprocessing_error(tiny_copy)
    assert "new_0000.nii.gz" in message
    assert "holds the same bytes as imagesTs/test_08_0000.nii.gz" in message


def test_19_a_test_image_added_after_preprocessing_is_compared_when_training_starts(prepared_copy: TinyDataset) -> None:
    shutil.copy(
        images_folder(prepared_copy) / "free_05_0000.nii.gz", prepared_copy.raw / "imagesTs" / "late_0000.nii.gz"
    )
    assert "holds the same bytes as imagesTs/late_0000.nii.gz" in training_error(prepared_copy)


def test_19_a_labeled_case_among_the_unlabeled_is_found_without_raw_images(prepared_copy: TinyDataset) -> None:
    shutil.rmtree(prepared_copy.root / "raw")
    shutil.copy(folder_of(prepared_copy) / "free_05.pkl", prepared_copy.preprocessed / "nnUNetPlans_2d" / "free_05.pkl")
    assert "free_05" in training_error(prepared_copy)


def test_19_two_thousand_images_of_equal_size_are_compared_in_seconds(tmp_path: Path) -> None:
    for number in range(2000):
        folder = tmp_path / ("imagesUn" if number % 2 else "imagesTr")
        folder.mkdir(exist_ok=True)
        (folder / f"case{number}_0000.nrrd").write_bytes(number.to_bytes(4, "big") * 500)
    start = time.process_time()
    cases = find_unlabeled_cases(tmp_path / "imagesUn", ".nrrd", {1})
    assert leak_problems(cases.values(), labeled_and_test_images(tmp_path, ".nrrd"), file_crc32, file_crc32) == []
    assert time.process_time() - start < 3


def reading_error(tiny: TinyDataset, name: str, nnunet: NnunetObjects | None = None) -> str:
    file = images_folder(tiny) / name
    with pytest.raises(InputError) as error:
        read_and_check(
            nnunet or nnunet_objects(DatasetConfiguration(tiny.name, "nnUNetPlans", "2d")), RawCase("case", (file,))
        )
    assert str(file) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_20_voxels_that_are_not_finite_are_counted_and_the_first_is_named(tiny_copy: TinyDataset, value: float) -> None:
    image = blob_case(1)[0]
    image[3, 4, 5] = image[3, 4, 6] = value
    write_volume(image, images_folder(tiny_copy) / "bad_0000.nrrd")
    message = reading_error(tiny_copy, "bad_0000.nrrd")
    assert "2 voxels are NaN or infinite, the first at (channel, z, y, x) (0, 3, 4, 5)" in message


def test_20_a_constant_image_is_refused(tiny_copy: TinyDataset) -> None:
    write_volume(np.zeros((4, 8, 8), np.float32), images_folder(tiny_copy) / "void_0000.nii.gz")
    assert "every voxel is 0" in reading_error(tiny_copy, "void_0000.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_20_a_file_that_is_cut_off_is_refused(tiny_copy: TinyDataset, ending: str) -> None:
    file = images_folder(tiny_copy) / f"cut_0000{ending}"
    write_volume(blob_case(1)[0], file)
    os.truncate(file, file.stat().st_size // 2)
    reading_error(tiny_copy, file.name)


def test_20_a_flipped_bit_in_a_compressed_file_is_found(tiny_copy: TinyDataset) -> None:
    file = images_folder(tiny_copy) / "flip_0000.nii.gz"
    content = bytearray(gzip.compress(sitk_bytes(tiny_copy), compresslevel=0))
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "damaged file" in reading_error(tiny_copy, file.name)


def sitk_bytes(tiny: TinyDataset) -> bytes:
    file = tiny.root / "plain.nii"
    sitk.WriteImage(sitk.GetImageFromArray(blob_case(1)[0]), str(file))
    return file.read_bytes()


def with_spacing(folder: Path, name: str, spacing: float) -> None:
    image = sitk.GetImageFromArray(blob_case(1)[0])
    image.SetSpacing([spacing] * 3)
    sitk.WriteImage(image, str(folder / f"{name}_0000.nii.gz"))


@pytest.mark.parametrize("spacing", [0.002, 1000.0])
def test_20_an_impossible_voxel_size_is_named_before_anything_is_resampled(
    tiny_copy: TinyDataset, spacing: float
) -> None:
    with_spacing(images_folder(tiny_copy), "odd", spacing)
    message = reading_error(tiny_copy, "odd_0000.nii.gz")
    sizes = rf"\({spacing:g}, {spacing:g}, {spacing:g}\) mm \(z, y, x\), but \(1.5, 1, 1\) mm"
    assert re.search(rf"impossible voxel size in .*: {sizes} .* is the median of the labeled cases", message)


def test_20_a_case_with_an_impossible_voxel_size_is_left_out_and_the_exit_code_says_so(tiny_copy: TinyDataset) -> None:
    with_spacing(images_folder(tiny_copy), "odd", 0.002)
    with_warning(tiny_copy, "free_04")
    with_warning(tiny_copy, "free_05")
    completed = tiny_copy.run(COMMAND, "-d", "998", "-c", "2d", "-np", "1", check=False)
    assert completed.returncode == 2
    assert completed.stderr.count("error: impossible voxel size") == 1
    assert completed.stdout.count("warning: the file has unexpected scales in sform (2 files, the first is ") == 1
    (images_folder(tiny_copy) / "odd_0000.nii.gz").unlink()
    assert trainable_cases(plans_of(tiny_copy), "2d") == CASES


def with_warning(tiny: TinyDataset, case: str) -> None:
    """Give the image another voxel size in its sform than in its header, of which SimpleITK warns."""
    file = images_folder(tiny) / f"{case}_0000.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[280:284] = np.array([3], "<f4").tobytes()  # srow_x[0]
    file.write_bytes(gzip.compress(content, 1))


def test_20_a_constant_channel_is_told_and_becomes_zero(
    tiny_copy: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_channels(tiny_copy)
    image = np.stack([blob_case(1)[0], np.full(SHAPE_ZYX, 7, np.float32), blob_case(2)[0]])
    write_volume(image, images_folder(tiny_copy) / "part_0000.nii.gz")
    case = RawCase("part", (images_folder(tiny_copy) / "part_0000.nii.gz",))
    scratch = tiny_copy.root / "scratch"
    scratch.mkdir()
    target = DatasetConfiguration(tiny_copy.name, "nnUNetPlans", "2d")
    monkeypatch.setattr(case_preprocessing, "nnunet_objects", nnunet_objects.__wrapped__)  # other plans than before
    result = preprocess_case(Job(target, case, scratch, tiny_copy.root))
    assert result.warnings == [f"{case.images[0]}: channel 1 has one value only, and tells nothing"]
    voxels = nnUNetDatasetBlosc2(str(tiny_copy.root), ["part"]).load_case("part")[0][:]
    assert np.isfinite(voxels).all()
    assert [bool(channel.any()) for channel in voxels] == [True, False, True]


@pytest.mark.parametrize("content", ["", "{}", '{"spacing": [1, 2]}', '{"spacing": [0, 1, 1]}', '{"spacing": "a"}'])
def test_20_a_wrong_spacing_file_of_a_tiff_is_named(tiny_copy: TinyDataset, content: str) -> None:
    nnunet = copy.deepcopy(nnunet_objects(DatasetConfiguration(tiny_copy.name, "nnUNetPlans", "2d")))
    nnunet.plans_manager.plans["image_reader_writer"] = "Tiff3DIO"
    file, sidecar = images_folder(tiny_copy) / "page_0000.tif", images_folder(tiny_copy) / "page.json"
    tifffile.imwrite(file, blob_case(1)[0])
    sidecar.write_text(content)
    with pytest.raises(InputError) as error:
        read_and_check(nnunet, RawCase("page", (file,), (sidecar,)))
    assert len(str(error.value).splitlines()) == 1
    assert "page.json" in str(error.value) or "impossible voxel size" in str(error.value)


def broken_link(file: Path) -> None:
    file.symlink_to(file.with_name("gone.nii.gz"))


def link_to_folder(file: Path) -> None:
    file.symlink_to(file.parent)


def folder(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("make", [broken_link, link_to_folder, folder])
@pytest.mark.parametrize("place", ["imagesUn", "imagesTs", "imagesTr"])
def test_20_what_is_no_file_does_not_stop_a_training_that_does_not_need_it(
    prepared_copy: TinyDataset, place: str, make: Callable[[Path], None], monkeypatch
) -> None:
    """It is told before the images are compared, which may take long."""
    make(prepared_copy.raw / place / "extra_0000.nii.gz")
    seen, compare = [], preprocessing._leak_problems
    with piped_output() as told:
        monkeypatch.setattr(preprocessing, "_leak_problems", lambda *given: seen.append(told()) or compare(*given))
        assert trainable_cases(plans_of(prepared_copy), "2d") == CASES
    assert ["Not used: extra" in text for text in seen] == [place == "imagesUn"]


@pytest.mark.parametrize("make", [broken_link, link_to_folder, folder])
def test_20_what_is_no_file_is_named_and_the_others_are_preprocessed(
    tiny_copy: TinyDataset, make: Callable[[Path], None]
) -> None:
    make(images_folder(tiny_copy) / "extra_0000.nii.gz")
    message = preprocessing_error(tiny_copy)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"error: file not read in {images_folder(tiny_copy) / 'extra_0000.nii.gz'}: ")
    assert trainable_cases(plans_of(tiny_copy), "2d") == CASES


def test_20_a_preprocessed_case_whose_raw_file_is_out_of_reach_is_kept(prepared_copy: TinyDataset) -> None:
    """Raw images are often links to a disk that the training machine does not have."""
    file = images_folder(prepared_copy) / "free_05_0000.nii.gz"
    file.unlink()
    broken_link(file)
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES
    preprocess(prepared_copy)
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES


def test_20_bad_images_are_all_named_and_the_others_are_preprocessed(tiny_copy: TinyDataset) -> None:
    (images_folder(tiny_copy) / "rubbish_0000.nii.gz").write_bytes(gzip.compress(b"no image"))
    (images_folder(tiny_copy) / "plain_0000.nii.gz").write_bytes(b"not compressed")
    message = preprocessing_error(tiny_copy)
    assert "rubbish_0000.nii.gz" in message
    assert "plain_0000.nii.gz" in message
    for name in ("rubbish", "plain"):
        (images_folder(tiny_copy) / f"{name}_0000.nii.gz").unlink()
    assert trainable_cases(plans_of(tiny_copy), "2d") == CASES


def test_21_without_plans_the_error_names_the_planning_command(tiny_copy: TinyDataset) -> None:
    completed = tiny_copy.run(COMMAND, "-d", "998", "-p", "nnUNetOther", check=False)
    assert completed.returncode == 2
    assert completed.stderr.strip().splitlines()[-1].startswith("error: plans missing in ")
    assert "nnUNetv2_plan_and_preprocess" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_21_the_error_for_an_unknown_configuration_lists_the_known_ones(tiny_copy: TinyDataset) -> None:
    with pytest.raises(InputError, match="choose from 2d, 3d_fullres"):
        preprocess_unlabeled(tiny_copy.name, "nnUNetPlans", ["4d"], 1)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("image_reader_writer", "NibabelIO"),
        ("transpose_forward", [1, 0, 2]),
        ("foreground_intensity_properties_per_channel", {"0": {"mean": 7.0, "std": 2.0}}),
        ("configurations/2d/spacing", [1.1, 1.1]),
        ("configurations/2d/normalization_schemes", ["CTNormalization"]),
        ("configurations/2d/use_mask_for_norm", [True]),
        ("configurations/2d/preprocessor_name", "OtherPreprocessor"),
        ("configurations/2d/resampling_fn_data_kwargs", {"order": 0}),
        ("configurations/2d/resampling_fn_seg_kwargs", {"order": 0}),
    ],
)
def test_21_the_error_for_changed_plans_names_the_preprocessing_command(
    prepared_copy: TinyDataset, entry: str, value: object
) -> None:
    plans = json.loads(prepared_copy.plans_file.read_text())
    *path, last = entry.split("/")
    changed = functools.reduce(dict.__getitem__, path, plans)
    assert changed[last] != value
    changed[last] = value
    remedy = f"Fix: {COMMAND} -d {prepared_copy.name} -c 2d -p nnUNetPlans"
    with pytest.raises(InputError, match=f"plans have changed.*{remedy}"):
        trainable_cases(PlansManager(plans), "2d")


def add_cases(tiny: TinyDataset, number: int = 28) -> None:
    for index in range(number):
        shutil.copy(images_folder(tiny) / "free_04_0000.nii.gz", images_folder(tiny) / f"more{index:02d}_0000.nii.gz")


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def poll_until(condition, seconds: float = 120) -> Iterator[None]:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)
        yield


def start_preprocessing(tiny: TinyDataset) -> subprocess.Popen[str]:
    """Start the command on many cases and wait for files of a third one.

    It begins when one of the first two is recorded: no more cases are worked on than there are processes.
    """
    add_cases(tiny)
    command = [COMMAND, "-d", "998", "-c", "2d", "-np", "2"]
    process = subprocess.Popen(command, env=tiny.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = folder_of(tiny)
    for _ in poll_until(lambda: folder.is_dir() and len(list(folder.glob("*[0-9].b2nd"))) > 2):
        assert process.poll() is None, process.communicate()
    return process


@pytest.mark.slow
def test_22_a_killed_worker_is_an_error_and_finished_cases_are_kept(tiny_copy: TinyDataset) -> None:
    process = start_preprocessing(tiny_copy)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    message = process.communicate(timeout=120)[1].splitlines()[-1]
    assert process.returncode == 2
    assert message.startswith("error: worker process killed in ")
    assert "while it worked on " in message
    folder = folder_of(tiny_copy)
    finished = read_manifest(folder.with_name(folder.name + ".json"), "").cases
    assert finished
    assert len(finished) < 32
    kept = {name: (folder / f"{name}.b2nd").stat().st_ino for name in finished}
    preprocess(tiny_copy)
    assert len(trainable_cases(plans_of(tiny_copy), "2d")) == 32
    assert {name: (folder / f"{name}.b2nd").stat().st_ino for name in finished} == kept


@pytest.mark.slow
def test_22_after_kill_9_workers_end_and_the_next_run_ends_as_an_uninterrupted_one(
    tiny_copy: TinyDataset, tiny_prepared: TinyDataset
) -> None:
    process = start_preprocessing(tiny_copy)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    for _ in poll_until(lambda: not any(map(is_running, workers)), seconds=10):
        pass
    preprocess(tiny_copy)
    assert len(trainable_cases(plans_of(tiny_copy), "2d")) == 32
    for case in CASES:  # voxels, since the compressor's threads write their blocks in any order
        assert np.array_equal(load(tiny_copy, "2d", case)[0][:], load(tiny_prepared, "2d", case)[0][:])
    assert not [path for path in tiny_copy.preprocessed.iterdir() if path.name.endswith(".partial")]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_23_a_damaged_file_is_named_when_training_starts(prepared_copy: TinyDataset, ending: str, damage) -> None:
    damage(folder_of(prepared_copy) / f"free_06{ending}")
    message = training_error(prepared_copy)
    assert f"free_06{ending}" in message
    assert message.endswith(f"Fix: {COMMAND} -d {prepared_copy.name} -c 2d -p nnUNetPlans")


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_preprocessing_that_ended_early_is_told_where_only_its_folder_is(
    tiny_copy: TinyDataset, interrupted: bool, monkeypatch
) -> None:
    """By a bad image, or by Ctrl-C: a training would take the cases that there are for all."""
    if interrupted:
        run_jobs = preprocessing.run_jobs

        def stop_after_one(*arguments: object) -> Iterator:
            yield next(iter(run_jobs(*arguments)))
            raise KeyboardInterrupt

        monkeypatch.setattr(preprocessing, "run_jobs", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            preprocess(tiny_copy)
    else:
        (images_folder(tiny_copy) / "bad_0000.nii.gz").write_bytes(gzip.compress(b"no image"))
        preprocessing_error(tiny_copy)
    shutil.rmtree(tiny_copy.root / "raw")
    told = "3 of 4 cases are missing" if interrupted else r"1 of 5 cases are missing \(bad\)"
    expected = f"error: preprocessing incomplete in .*{told}.*Fix: where the raw images are"
    assert re.search(expected, training_error(tiny_copy))


def test_a_manifest_of_an_earlier_version_is_read_and_its_images_by_content(prepared_copy: TinyDataset) -> None:
    manifest = folder_of(prepared_copy).with_name(folder_of(prepared_copy).name + ".json")
    content = json.loads(manifest.read_text())
    for name in ("asked_for", "ended", "made_with"):
        del content[name]
    for case in content["cases"].values():
        case["sources"] = {name: values[:3] for name, values in case["sources"].items()}
    manifest.write_text(json.dumps(content))
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES
    before = files_of(folder_of(prepared_copy))
    preprocess(prepared_copy)
    assert files_of(folder_of(prepared_copy)) == before
    assert len(json.loads(manifest.read_text())["asked_for"]) == 4


def test_cases_that_another_version_preprocessed_are_made_again(prepared_copy: TinyDataset, monkeypatch) -> None:
    monkeypatch.setattr(manifest_module, "PREPROCESSING", 2)
    assert "preprocessed by other versions" in training_error(prepared_copy)
    with piped_output() as told:
        preprocess(prepared_copy)
        assert "4 of 4 unlabeled cases to preprocess" in told()
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES


def test_what_is_to_be_done_is_told_before_it_is_begun(tiny_copy: TinyDataset, monkeypatch) -> None:
    """Also into a pipe or a file, which nothing reaches that is not flushed."""
    seen: list[str] = []
    with piped_output() as told:
        monkeypatch.setattr(preprocessing, "_run_job_lists", lambda *_: seen.append(told()) or [])
        preprocess(tiny_copy)
    assert seen == [f"{tiny_copy.name} 2d: 4 of 4 unlabeled cases to preprocess\n"]


def test_raw_images_that_this_machine_does_not_have_have_no_checksums(tiny_copy: TinyDataset) -> None:
    """Also where dataset.json lists them."""
    description = json.loads((tiny_copy.raw / "dataset.json").read_text())
    cases = [file.name.split("_0000")[0] for file in (tiny_copy.raw / "imagesTr").iterdir()]
    listed = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in cases}
    asked = tiny_copy.name, description | {"dataset": listed}, cases
    assert len(preprocessing.labeled_checksums(*asked)) == 4
    shutil.rmtree(tiny_copy.raw)
    assert preprocessing.labeled_checksums(*asked) == {}


def test_an_image_of_equal_size_and_date_is_noticed(prepared_copy: TinyDataset) -> None:
    """As a copy that keeps the date, or an archive that gives all files one date."""
    file = images_folder(prepared_copy) / "free_05_0000.nii.gz"
    date = file.stat().st_mtime_ns
    for replace in (lambda: flip(file), lambda: file.with_name("free_05_0000.nii.gz").write_bytes(file.read_bytes())):
        replace()
        os.utime(file, ns=(date, date))
        assert "imagesUn: 1 changed (free_05)" in training_error(prepared_copy)


def test_nothing_is_removed_or_made_anew_while_a_training_reads(prepared_copy: TinyDataset) -> None:
    """New cases may come: the training does not know them."""
    before = files_of(folder_of(prepared_copy))
    reading = Reading(folder_of(prepared_copy))
    write_volume(blob_case(80)[0], images_folder(prepared_copy) / "new_0000.nii.gz")
    preprocess(prepared_copy)
    assert files_of(folder_of(prepared_copy)).items() > before.items()
    for change in (lambda image: write_volume(blob_case(81)[0], image), Path.unlink):
        change(images_folder(prepared_copy) / "free_05_0000.nii.gz")
        assert f"process {os.getpid()} on {os.uname().nodename}; 1 cases" in preprocessing_error(prepared_copy)
        assert files_of(folder_of(prepared_copy)).items() > before.items()
    reading.release()
    folder_of(prepared_copy).with_name(
        f".{folder_of(prepared_copy).name}.reader.{os.uname().nodename}.1.lock"
    ).touch()  # of a killed one
    preprocess(prepared_copy)
    assert not (folder_of(prepared_copy) / "free_05.b2nd").exists()
    assert not list(prepared_copy.preprocessed.glob("*.reader.*"))


def test_24_nnunet_preprocessing_keeps_the_unlabeled_cases(prepared_copy: TinyDataset) -> None:
    before = files_of(folder_of(prepared_copy))
    prepared_copy.run("nnUNetv2_preprocess", "-d", "998", "-c", "2d", "-np", "1")
    assert files_of(folder_of(prepared_copy)) == before
    assert trainable_cases(plans_of(prepared_copy), "2d") == CASES


@pytest.mark.parametrize("empty", [True, False])
def test_25_the_error_for_missing_unlabeled_images_names_their_folder(tiny_copy: TinyDataset, empty: bool) -> None:
    shutil.rmtree(images_folder(tiny_copy))
    if empty:
        images_folder(tiny_copy).mkdir()
    state = "the folder is empty" if empty else "no unlabeled images"
    assert f"imagesUn: {state}. Fix: put images" in preprocessing_error(tiny_copy)
    assert not folder_of(tiny_copy).exists()


def test_25_the_error_for_missing_unlabeled_cases_names_the_preprocessing_command(tiny_copy: TinyDataset) -> None:
    assert training_error(tiny_copy).endswith(f"Fix: {COMMAND} -d {tiny_copy.name} -c 2d -p nnUNetPlans")


def test_25_raw_images_that_were_added_or_removed_are_named(prepared_copy: TinyDataset) -> None:
    folder = images_folder(prepared_copy)
    (folder / "free_05_0000.nii.gz").rename(folder / "new_0000.nii.gz")
    assert "1 not preprocessed yet (new); 1 no longer there (free_05)" in training_error(prepared_copy)


def test_25_a_raw_image_with_other_bytes_of_equal_number_is_named(prepared_copy: TinyDataset) -> None:
    flip(images_folder(prepared_copy) / "free_05_0000.nii.gz")
    assert "imagesUn: 1 changed (free_05). Fix: " in training_error(prepared_copy)


def test_25_the_error_for_a_full_disk_gives_the_free_bytes(tiny_copy: TinyDataset) -> None:
    unlabeled_folder = unlabeled_folder_of(plans_of(tiny_copy), "2d", "nnUNetPlans")
    with pytest.raises(InputError, match=r"cannot write in .*: No space left on device \(\d+ bytes free\)"):
        with disk_errors_reported(unlabeled_folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
