"""Reading and writing of volumes: the geometry survives, and a label comes to lie on its image."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from fake_data import case_arrays, write_nifti

from nnunetv2_crossmatch.dataset_conversion.reading import Volume, read_nifti, read_nrrd
from nnunetv2_crossmatch.dataset_conversion.writing import write_case
from nnunetv2_crossmatch.errors import InputError

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


def stored(folder: Path, name: str, array: np.ndarray, affine: np.ndarray, ending: str) -> Path:
    """``array`` (x, y, z) with an ``affine`` (RAS) in a file of either format."""
    file = folder / f"{name}{ending}"
    if ending == ".nrrd":
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
        lps = np.diag([-1, -1, 1, 1]) @ affine
        sizes = nibabel.affines.voxel_sizes(affine)
        image.SetSpacing(sizes.tolist())
        image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        SimpleITK.WriteImage(image, file)
    else:
        nibabel.save(nibabel.Nifti1Image(array, affine), file)
    return file


READERS = {".nii.gz": read_nifti, ".nrrd": read_nrrd}


@pytest.fixture
def placed() -> np.ndarray:
    """Affine of a turned, anisotropic image."""
    affine = np.eye(4)
    affine[:3, :3] = TURNED * SPACING_XYZ
    affine[:3, 3] = ORIGIN
    return affine


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("axes", [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, 1, -1)), ((2, 0, 1), (1, -1, 1))], ids=str)
def test_a_label_stored_with_other_axes_comes_to_lie_on_its_image(
    tmp_path: Path, placed: np.ndarray, ending: str, axes: tuple
) -> None:
    image, label = case_arrays(0)
    orientation = np.column_stack(axes)
    other = nibabel.orientations.apply_orientation(label, orientation)
    moved = placed @ nibabel.orientations.inv_ornt_aff(orientation, label.shape)
    files = stored(tmp_path, "image", image, placed, ending), stored(tmp_path, "label", other, moved, ending)
    volume = READERS[ending](*files)
    np.testing.assert_array_equal(volume.label, label)
    np.testing.assert_allclose(volume.affine, placed, atol=1e-4)
    assert len(volume.notes) == (axes != ((0, 1, 2), (1, 1, 1)))


def shifted(affine: np.ndarray, voxels: float) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += voxels * affine[:3, 0]
    return moved


@pytest.mark.parametrize("ending", READERS)
def test_a_label_that_lies_elsewhere_is_refused_and_a_rounding_accepted(
    tmp_path: Path, placed: np.ndarray, ending: str
) -> None:
    image, label = case_arrays(0)
    file = stored(tmp_path, "image", image, placed, ending)
    rounded = stored(tmp_path, "rounded", label, shifted(placed, 0.01), ending)
    np.testing.assert_array_equal(READERS[ending](file, rounded).label, label)
    angle = np.deg2rad(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    for name, affine in (("shifted", shifted(placed, 2)), ("turned", turn @ placed)):
        with pytest.raises(InputError, match=rf"label lies elsewhere in .*{name}.*Fix: resample it"):
            READERS[ending](file, stored(tmp_path, name, label, affine, ending))


def test_a_nrrd_label_with_another_spacing_is_noted(tmp_path: Path, placed: np.ndarray) -> None:
    image, label = case_arrays(0)
    other = placed.copy()
    other[:3, :3] *= 1.1
    files = stored(tmp_path, "image", image, placed, ".nrrd"), stored(tmp_path, "label", label, other, ".nrrd")
    assert read_nrrd(*files).notes == ("image and label give different voxel sizes: the image's is used",)


def with_codes(file: Path, qform: int, sform: int) -> Path:
    image = nibabel.load(file)
    image.header["qform_code"], image.header["sform_code"] = qform, sform
    changed = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    file.write_bytes(gzip.compress(changed.to_bytes()))
    return file


def test_an_image_with_a_sform_only_keeps_its_position(tmp_path: Path, placed: np.ndarray) -> None:
    image, label = case_arrays(0)
    file = with_codes(stored(tmp_path, "image", image, placed, ".nii.gz"), 0, 1)
    np.testing.assert_allclose(read_nifti(file, None).affine, placed, atol=1e-4)
    mirrored = shifted(placed, label.shape[0] - 1)
    mirrored[:3, 0] *= -1
    label_file = with_codes(stored(tmp_path, "label", label[::-1], mirrored, ".nii.gz"), 0, 2)
    np.testing.assert_array_equal(read_nifti(file, label_file).label, label)


def test_a_label_without_position_is_taken_as_it_lies(tmp_path: Path, placed: np.ndarray) -> None:
    image, label = case_arrays(0)
    file = stored(tmp_path, "image", image, placed, ".nii.gz")
    write_nifti(tmp_path / "label.nii.gz", label, SPACING_XYZ)
    with_codes(tmp_path / "label.nii.gz", 0, 0)
    np.testing.assert_array_equal(read_nifti(file, tmp_path / "label.nii.gz").label, label)


def test_a_sform_with_other_angles_is_refused(tmp_path: Path, placed: np.ndarray) -> None:
    skewed = placed.copy()
    skewed[:3, 0] += 0.3 * placed[:3, 1]
    file = stored(tmp_path, "image", case_arrays(0)[0], placed, ".nii.gz")
    image = nibabel.load(file)
    image.set_sform(skewed, 1)
    image.header["qform_code"] = 0
    file.write_bytes(gzip.compress(image.to_bytes()))
    with pytest.raises(InputError, match="not at right angles"):
        read_nifti(file, None)
