"""Voxel sizes that no scanner has are refused, those of real data sets pass."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunetv2_crossmatch.data.voxel_size import check_voxel_size, header_voxel_size
from nnunetv2_crossmatch.errors import InputError


def nifti(folder: Path, *sizes: float, ending: str = ".nii.gz") -> Path:
    """A NIfTI file with these sizes (x, y, z) in its header, which nibabel does not write as they are."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4)[: len(sizes)], np.uint8), np.eye(4))
    content = bytearray(image.to_bytes())
    content[80 : 80 + 4 * len(sizes)] = np.array(sizes, "<f4").tobytes()
    file = folder / f"image{ending}"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("size", [0, -1, np.nan, np.inf])
def test_a_size_of_zero_or_less_or_not_finite_is_refused_though_the_reader_makes_it_one(
    tmp_path: Path, size: float
) -> None:
    with pytest.raises(InputError, match=rf"impossible voxel size in .*image.nii.gz: \(2, 1, {size:g}\) mm"):
        check_voxel_size(nifti(tmp_path, size, 1, 2), (2, 1, 1))


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, np.nan, 1), (1, 1, "a"), (None, 1, 1)])
def test_what_a_sidecar_gives_is_checked_too(tmp_path: Path, spacing: tuple) -> None:
    with pytest.raises(InputError, match="impossible voxel size"):
        check_voxel_size(nifti(tmp_path, 1, 1, 1), spacing)


@pytest.mark.parametrize("spacing", [(0.002, 1, 1), (1, 1000, 1), (0.001, 0.001, 0.001)])
def test_a_size_far_from_the_median_is_refused_with_both_sizes(tmp_path: Path, spacing: tuple) -> None:
    with pytest.raises(InputError, match=r"but \(1, 1, 1\) mm \(z, y, x\) is the median of the labeled cases"):
        check_voxel_size(nifti(tmp_path, 1, 1, 1), spacing, (1, 1, 1))


@pytest.mark.parametrize("spacing", [(10, 0.3, 0.3), (0.5, 2, 2), (999, 1, 1)])
def test_sizes_that_scanners_have_pass(tmp_path: Path, spacing: tuple) -> None:
    median = (999, 1, 1) if spacing[0] == 999 else (2, 0.8, 0.8)
    check_voxel_size(nifti(tmp_path, 1, 1, 1), spacing, median)


def test_of_a_flat_image_only_its_axes_count(tmp_path: Path) -> None:
    assert header_voxel_size(nifti(tmp_path, 2, 3)) == (3, 2)


def test_other_images_have_no_nifti_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert header_voxel_size(tmp_path / "a.png") == ()
