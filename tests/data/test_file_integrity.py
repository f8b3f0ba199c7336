"""Integrity check: truncated and damaged files of every format are refused, intact files pass whatever their ending."""

from __future__ import annotations

import gzip
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
from skimage import io

from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.errors import InputError

FLIPS = 60
VOLUME = (np.random.default_rng(0).normal(size=(6, 24, 24)) * 30 + 100).astype(np.uint16)
COMPRESSED = ["packed.nii.gz", "packed.nrrd", "packed.mha", "packed.mhd", "packed.png", "packed.tif", "packed.tiff"]
UNCOMPRESSED = ["plain.nii", "plain.nrrd", "plain.mha", "plain.mhd", "plain.gipl", "plain.bmp", "plain.tif"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image in each format, compressed (``packed``) and uncompressed (``plain``)."""
    folder = tmp_path_factory.mktemp("images")
    image = SimpleITK.GetImageFromArray(VOLUME)
    for name in (*COMPRESSED, *UNCOMPRESSED):
        file, packed = folder / name, name.startswith("packed")
        if file.suffix in (".png", ".bmp"):
            io.imsave(file, VOLUME[0].astype(np.uint8), check_contrast=False)
        elif file.suffix in (".tif", ".tiff"):
            tifffile.imwrite(file, VOLUME, compression="zlib" if packed else None, bigtiff=file.suffix == ".tiff")
        else:
            SimpleITK.WriteImage(image, file, useCompression=packed)
    return folder


def own_copy(images: Path, folder: Path, name: str) -> tuple[Path, Path]:
    """Copies of an image and of the file with its voxels, which is another one for .mhd only."""
    for file in images.glob(f"{name.split('.')[0]}.*"):
        shutil.copy(file, folder)
    file = folder / name
    data = {"packed.mhd": file.with_suffix(".zraw"), "plain.mhd": file.with_suffix(".raw")}
    return file, data.get(name, file)


def read(file: Path) -> np.ndarray:
    """Voxels as the library reads them that nnU-Net's reader of this format uses."""
    if file.suffix in (".png", ".bmp"):
        return io.imread(file)
    if file.suffix in (".tif", ".tiff"):
        return tifffile.imread(file)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file))


def is_damage_silent(file: Path, expected: np.ndarray) -> bool:
    """Whether the check passes, and the reader reads other voxels; a reader that fails itself is not silent."""
    with suppress(Exception):
        check_file_integrity(file)
        return not np.array_equal(read(file), expected)
    return False


def is_refused(file: Path) -> bool:
    with pytest.raises(InputError) as caught:
        check_file_integrity(file)
    return caught.value.problems[0].what == "damaged file"


@pytest.mark.parametrize("name", [*COMPRESSED, *UNCOMPRESSED])
def test_an_intact_file_passes(images: Path, name: str) -> None:
    check_file_integrity(images / name)


@pytest.mark.parametrize("name", COMPRESSED)
def test_no_flipped_bit_in_compressed_data_is_read_silently(images: Path, tmp_path: Path, name: str) -> None:
    file, data = own_copy(images, tmp_path, name)
    content, expected, places = data.read_bytes(), read(file), random.Random(0)
    for _ in range(FLIPS):
        at, bit = places.randrange(len(content) // 4, len(content)), places.randrange(8)
        data.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        assert not is_damage_silent(file, expected), f"byte {at}, bit {bit}"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", [*COMPRESSED, *UNCOMPRESSED])
def test_a_truncated_file_is_not_read_silently(images: Path, tmp_path: Path, name: str, share: float) -> None:
    file, data = own_copy(images, tmp_path, name)
    expected = read(file)
    data.write_bytes(data.read_bytes()[: int(share * data.stat().st_size)])
    assert not is_damage_silent(file, expected)


def test_an_image_truncated_before_compression_is_refused(images: Path, tmp_path: Path) -> None:
    content = (images / "plain.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:-100]))
    with pytest.raises(InputError, match=f"{len(content) - 100} of {len(content)} bytes are there"):
        check_file_integrity(tmp_path / "a.nii.gz")


def test_an_uncompressed_nifti_named_nii_gz_passes_and_is_read(images: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(images / "plain.nii", tmp_path / "plain.nii.gz"))
    check_file_integrity(file)
    assert np.array_equal(read(file), VOLUME)


def test_a_truncated_nifti_with_the_wrong_ending_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes((images / "plain.nii").read_bytes()[:-1])
    (tmp_path / "b.nii").write_bytes((images / "packed.nii.gz").read_bytes()[:-1])
    assert is_refused(tmp_path / "a.nii.gz")
    assert is_refused(tmp_path / "b.nii")


def test_a_gzip_named_nii_passes(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "packed.nii.gz", tmp_path / "a.nii")
    check_file_integrity(tmp_path / "a.nii")


def test_a_missing_file_with_the_voxels_is_refused(images: Path, tmp_path: Path) -> None:
    file, data = own_copy(images, tmp_path, "packed.mhd")
    data.unlink()
    assert is_refused(file)


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "LIST", "slice%03d.raw 1 6 1"])
def test_an_mhd_header_that_names_voxels_outside_its_folder_is_refused(images: Path, tmp_path: Path, name: str) -> None:
    file, data = own_copy(images, tmp_path, "plain.mhd")
    file.write_text(file.read_text().replace(data.name, name))
    with pytest.raises(InputError, match="voxels in another file"):
        check_file_integrity(file)


def test_voxels_linked_to_another_folder_are_refused(images: Path, tmp_path: Path) -> None:
    file, data = own_copy(images, tmp_path, "plain.mhd")
    (tmp_path / "elsewhere").mkdir()
    data.symlink_to(data.rename(tmp_path / "elsewhere" / data.name))
    with pytest.raises(InputError, match="voxels in another file"):
        check_file_integrity(file)


@pytest.mark.parametrize("entry", ["data file: /etc/passwd", "datafile: LIST"])
def test_an_nrrd_header_that_names_another_file_is_refused(images: Path, tmp_path: Path, entry: str) -> None:
    file, _ = own_copy(images, tmp_path, "plain.nrrd")
    file.write_bytes(file.read_bytes().replace(b"encoding: raw", f"{entry}\nencoding: raw".encode()))
    with pytest.raises(InputError, match="voxels in another file"):
        check_file_integrity(file)
