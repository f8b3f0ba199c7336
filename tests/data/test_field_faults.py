"""Disks, permissions and names of users' folders: what preprocessing of unlabeled cases makes of them."""

from __future__ import annotations

import errno
import gzip
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import TinyDataset, blob_case, piped_output, write_volume
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from segmentation_folders import three_cases
from test_preprocessing import folder_of, plans_of

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data import case_preprocessing, preprocessing
from nnunetv2_crossmatch.data.manifest import file_info, read_manifest, write_manifest
from nnunetv2_crossmatch.data.preprocessing import preprocess_unlabeled, trainable_cases
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folder
from nnunetv2_crossmatch.folders import atomic_folder, atomic_write, flush_and_rename


@pytest.fixture
def preprocess(tiny_copy: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Preprocess the unlabeled cases for 2d in this process."""

    def run_here(jobs, processes):
        return ((job, case_preprocessing.preprocess_case(job)) for job in jobs)

    monkeypatch.setattr(preprocessing, "run_jobs", run_here)
    return lambda: preprocess_unlabeled(tiny_copy.name, "nnUNetPlans", ["2d"], 1)


def files_below(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_a_full_disk_while_a_case_is_written_is_told_and_what_is_finished_is_kept(tiny_copy, preprocess, monkeypatch):
    """The library that writes the cases says no more than that it could not."""
    save, written = nnUNetDatasetBlosc2.save_case, []

    def fail_at_third(data, seg, properties, stem, **options):
        written.append(stem)
        if len(written) == 3:
            Path(f"{stem}.b2nd").write_bytes(b"half")
            raise RuntimeError("Error while creating the NDArray")
        save(data, seg, properties, stem, **options)

    with monkeypatch.context() as patch:
        patch.setattr(nnUNetDatasetBlosc2, "save_case", fail_at_third)
        patch.setattr(case_preprocessing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
        with pytest.raises(InputError, match=r"cannot write in .*No space left on device.*finished cases are kept"):
            preprocess()
    folder = folder_of(tiny_copy)
    assert len(read_manifest(folders.manifest_file(folder), "").cases) == 2
    assert not folders.partial_path(folder).exists()
    preprocess()
    assert len(trainable_cases(plans_of(tiny_copy), "2d")) == 4


def test_a_folder_linked_to_another_file_system_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    source, target = tmp_path / "one" / "case.b2nd", tmp_path / "two" / "case.b2nd"
    source.write_bytes(b"voxels")
    rename = Path.replace

    def of_two_devices(path: Path, to: Path) -> Path:
        if path.is_relative_to(tmp_path / "one") and to.is_relative_to(tmp_path / "two"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, to)

    monkeypatch.setattr(Path, "replace", of_two_devices)
    flush_and_rename(source, target)
    assert files_below(tmp_path).keys() == {tmp_path / "one", tmp_path / "two", target}
    assert target.read_bytes() == b"voxels"


def test_nothing_is_written_to_the_raw_data_set(tiny_copy: TinyDataset, preprocess):
    """It may be on a medium without permission to write."""
    before = files_below(tiny_copy.raw)
    preprocess()
    trainable_cases(plans_of(tiny_copy), "2d")
    assert files_below(tiny_copy.raw) == before


@pytest.mark.parametrize(("mask", "of_file", "of_folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_files_and_folders_have_the_permissions_of_the_umask(tmp_path: Path, mask: int, of_file: int, of_folder: int):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_bytes(b"")
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "file").write_bytes(b"")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder", "folder/file")]
    assert modes == [of_file, of_folder, of_file]


def test_cases_that_differ_in_upper_and_lower_case_only_are_told(tiny_copy: TinyDataset, preprocess, monkeypatch):
    """Before the raw images are compared with what is preprocessed, which may take long."""
    compare, seen = preprocessing.up_to_date_cases, []
    for name in ("Free_04", "TRAIN_01"):
        write_volume(blob_case(60 + len(name))[0], tiny_copy.raw / "imagesUn" / f"{name}_0000.nii.gz")
    with piped_output() as output:
        monkeypatch.setattr(preprocessing, "up_to_date_cases", lambda *given: seen.append(output()) or compare(*given))
        preprocess()
    (told,) = seen
    assert "warning: Free_04 and free_04 differ in upper and lower case only" in told
    assert "warning: TRAIN_01 and train_01 differ in upper and lower case only" in told
    assert len(trainable_cases(plans_of(tiny_copy), "2d")) == 6


def test_such_cases_are_refused_where_their_files_would_be_one(tiny_copy: TinyDataset, preprocess, monkeypatch):
    write_volume(blob_case(70)[0], tiny_copy.raw / "imagesUn" / "Free_04_0000.nii.gz")
    monkeypatch.setattr(folders, "ignores_case", lambda folder: True)
    with pytest.raises(InputError, match=r"one file for two cases in \S+: Free_04 and free_04\. Fix: rename"):
        preprocess()


def test_a_file_system_is_asked_whether_it_tells_upper_from_lower_case(tmp_path: Path):
    assert folders.ignores_case(tmp_path) == (tmp_path.with_name(tmp_path.name.upper())).exists()
    assert not list(tmp_path.iterdir())


def test_predictions_named_in_another_case_of_letters_are_told(tmp_path: Path):
    reference, predictions = three_cases(tmp_path)
    for file in list(predictions.glob("*.nii.gz")):
        file.rename(file.with_name(file.name[0].upper() + file.name[1:]))
    with pytest.raises(InputError, match="3 differ in upper and lower case only, as A and a"):
        evaluate_folder(reference, predictions)


def test_two_thousand_unlabeled_cases_are_checked_in_seconds_and_few_megabytes(prepared_copy: TinyDataset):
    folder = folder_of(prepared_copy)
    manifest = read_manifest(folders.manifest_file(folder), "")
    record, images = manifest.cases["free_04"], prepared_copy.raw / "imagesUn"
    for name in [f"many_{number:04d}" for number in range(2000)]:
        for ending in record.files:
            os.link(folder / f"free_04{ending}", folder / f"{name}{ending}")
        os.link(images / "free_04_0000.nii.gz", images / f"{name}_0000.nii.gz")
    info = file_info(images / "free_04_0000.nii.gz")
    for name in ["free_04", *(f"many_{number:04d}" for number in range(2000))]:
        manifest.cases[name] = type(record)(record.files, {f"{name}_0000.nii.gz": info})
    write_manifest(folders.manifest_file(folder), manifest)
    started = time.process_time()
    tracemalloc.start()
    cases = trainable_cases(plans_of(prepared_copy), "2d", verify=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cases) == 2004
    assert peak < 30e6
    assert time.process_time() - started < 10


def test_a_padding_value_too_far_for_the_normalization_is_named(tiny_copy: TinyDataset, preprocess):
    """Finite voxels, of which mean and standard deviation are not."""
    image = blob_case(61)[0]
    image[:3] = -3.4028e38
    write_volume(image, tiny_copy.raw / "imagesUn" / "padded_0000.nii.gz")
    with pytest.raises(InputError, match=r"not finite in .*padded_0000.nii.gz: its voxels run from -3.4028e.38 to"):
        preprocess()
    assert len(read_manifest(folders.manifest_file(folder_of(tiny_copy)), "").cases) == 4


def header_changed(file: Path, **entries: float) -> None:
    image = nibabel.load(file)
    content = bytearray(gzip.decompress(file.read_bytes()))
    for name, value in entries.items():
        offset = image.header.template_dtype.fields[name][1]
        content[offset : offset + 4] = struct.pack("<f", value)
    file.write_bytes(gzip.compress(bytes(content)))


def voxels_of(tiny: TinyDataset, case: str) -> np.ndarray:
    return np.asarray(nnUNetDatasetBlosc2(str(folder_of(tiny)), [case]).load_case(case)[0][:])


def slope_of_zero(file: Path) -> None:
    header_changed(file, scl_slope=0.0, scl_inter=7.0)


def slope_not_a_number(file: Path) -> None:
    header_changed(file, scl_slope=float("nan"), scl_inter=float("nan"))


def big_endian(file: Path) -> None:
    image = nibabel.load(file)
    header = image.header.as_byteswapped(">")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, header), file)


def one_time_point(file: Path) -> None:
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), file)


def stored_as_float64(file: Path) -> None:
    image = nibabel.load(file)
    voxels = np.asarray(image.dataobj).astype(np.float64)
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), file)


def beside_files_of_macos(file: Path) -> None:
    for name in (f"._{file.name}", ".DS_Store"):
        file.with_name(name).write_bytes(b"\0\5\26\7")


FORMS = [slope_of_zero, slope_not_a_number, big_endian, one_time_point, stored_as_float64, beside_files_of_macos]


@pytest.mark.parametrize("change", FORMS)
def test_an_image_in_an_unusual_form_has_the_voxels_of_a_usual_one(tiny_copy: TinyDataset, preprocess, change):
    preprocess()
    before = voxels_of(tiny_copy, "free_05")
    change(tiny_copy.raw / "imagesUn" / "free_05_0000.nii.gz")
    preprocess()
    assert np.allclose(voxels_of(tiny_copy, "free_05"), before, atol=1e-4)
