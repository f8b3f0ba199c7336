"""reading and writing of volumes: the geometry of a rotated, anisotropic image survives."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from fake_data import case_arrays

from nnunetv2_crossmatch.dataset_conversion.reading import Volume, read_nrrd
from nnunetv2_crossmatch.dataset_conversion.writing import write_case

SPACING_XYZ = (0.5, 1.25, 3.0)
ORIGIN = (-10.0, 20.0, 30.0)
TURNED = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])  # a rotation, equal to none of its powers
POINTS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 5, 7)]


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """A NRRD file whose space directions have the lengths of the spacing."""
    image = SimpleITK.GetImageFromArray(case_arrays(0)[0].transpose(2, 1, 0))
    image.SetSpacing(SPACING_XYZ)
    image.SetOrigin(ORIGIN)
    image.SetDirection(TURNED.ravel().tolist())
    SimpleITK.WriteImage(image, tmp_path / "turned.nrrd")
    return tmp_path / "turned.nrrd"


def written(folder: Path, volume: Volume) -> SimpleITK.Image:
    """The image as it stands in the data set."""
    folder.mkdir()
    write_case(folder, "unlabeled", "case", volume.image, None, volume.affine)
    return SimpleITK.ReadImage(folder / "imagesUn" / "case_0000.nii.gz")


def test_voxels_of_a_rotated_nrrd_lie_where_itk_puts_them(turned: Path) -> None:
    volume, image = read_nrrd(turned, None), SimpleITK.ReadImage(turned)
    expected = np.array([image.TransformIndexToPhysicalPoint(point) for point in POINTS]) * (-1, -1, 1)  # LPS to RAS
    np.testing.assert_allclose(nibabel.affines.apply_affine(volume.affine, POINTS), expected, atol=1e-6)
    np.testing.assert_allclose(volume.spacing.xyz_mm, SPACING_XYZ, rtol=1e-6)


def test_a_rotated_nrrd_keeps_spacing_direction_and_origin_in_the_data_set(turned: Path, tmp_path: Path) -> None:
    image = written(tmp_path / "data_set", read_nrrd(turned, None))
    np.testing.assert_allclose(image.GetSpacing(), SPACING_XYZ, rtol=1e-5)
    np.testing.assert_allclose(image.GetDirection(), TURNED.ravel(), atol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, atol=1e-4)
