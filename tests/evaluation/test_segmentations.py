"""segmentations: what counts as one header_geometry, and which checked_labels a file may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segmentation_folders import ball, write, write_dataset_json

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.evaluation.segmentations import (
    LabelScheme,
    PredictionLabels,
    Segmentation,
    checked_labels,
    find_reader,
    grid_problems,
    header_geometry,
    multi_voxel_axes,
    read_label_scheme,
    read_pair,
)

SPACING_ZYX = (5.0, 1.0, 2.0)


def on_grid(
    spacing: tuple[float, ...] = SPACING_ZYX, origin: tuple[float, ...] = (0, 0, 0), turn: float = 0.0
) -> Segmentation:
    """An empty file whose header_geometry is turned about z by ``turn`` radians."""
    direction = np.eye(3)
    direction[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    header = {"spacing": spacing, "sitk_stuff": {"origin": origin, "direction": direction.ravel()}}
    return Segmentation(Path("file"), np.zeros((2, 2, 2)), header)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"spacing": (5.0, 1.002, 2.0)}, "spacing (z, y, x)"),
        ({"origin": (0, 0, 0.02)}, "origin (x, y, z)"),
        ({"turn": 0.002}, "direction"),
    ],
)
def test_a_grid_that_differs_by_twice_the_tolerance_is_another(change: dict[str, Any], what: str) -> None:
    (problem,) = grid_problems(on_grid(**change), on_grid())
    assert problem.what == f"{what} differs from the reference"


def test_a_spacing_of_nanometres_is_compared_as_strictly() -> None:
    (problem,) = grid_problems(on_grid((2e-6, 1e-6, 1.002e-6)), on_grid((2e-6, 1e-6, 1e-6)))
    assert problem.what == "spacing (z, y, x) differs from the reference"


@pytest.mark.parametrize(("difference", "told"), [(0.000997, 0), (0.001003, 1)])
def test_a_direction_may_differ_by_a_thousandth_however_it_lies(difference, told):
    """Entries around 0.7, where a share of the entry would count, too."""
    lies = np.pi / 4
    turned = np.arccos(np.cos(lies) - difference) - lies
    assert len(list(grid_problems(on_grid(turn=lies + turned), on_grid(turn=lies)))) == told


@pytest.mark.parametrize("change", [{"spacing": (5.0, 1.0005, 2.0)}, {"origin": (0.005, 0, 0)}, {"turn": 0.0005}])
def test_a_grid_that_differs_by_half_the_tolerance_is_the_same(change: dict[str, Any]) -> None:
    assert not list(grid_problems(on_grid(**change), on_grid()))


def test_the_axes_of_a_sheared_affine_have_length_one() -> None:
    affine = np.array([[0.0, -2.0, 0.0, 7.0], [3.0, 0.0, 0.0, 8.0], [0.0, 0.0, 5.0, 9.0], [0, 0, 0, 1]])
    origin, direction = header_geometry({"nibabel_stuff": {"original_affine": affine}})
    np.testing.assert_array_equal(origin, [7, 8, 9])
    np.testing.assert_array_equal(direction, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])


def test_a_file_without_geometry_fits_every_grid_of_its_spacing() -> None:
    bare = Segmentation(Path("file"), np.zeros((2, 2, 2)), {"spacing": SPACING_ZYX})
    assert header_geometry(bare.header) is None
    assert not list(grid_problems(bare, on_grid(origin=(9, 9, 9))))
    assert not list(grid_problems(on_grid(origin=(9, 9, 9)), bare))


@pytest.mark.parametrize(
    ("shape", "axes"), [((1, 4, 5), [1, 2]), ((4, 1, 5), [0, 2]), ((1, 1, 5), [2]), ((1, 1, 1), [0, 1, 2])]
)
def test_only_axes_of_several_voxels_are_measured(shape: tuple[int, ...], axes: list[int]) -> None:
    assert multi_voxel_axes(shape) == axes


def test_known_labels_are_those_of_the_classes_and_for_references_the_ignore_label() -> None:
    scheme = LabelScheme(".png", {"whole": (1, 3), "core": (3,)}, 7, {})
    assert scheme.values(with_ignore=False) == [0, 1, 3]
    assert scheme.values(with_ignore=True) == [0, 1, 3, 7]
    assert LabelScheme(".png", {"a": (1,)}, None, {}).values(with_ignore=True) == [0, 1]


@pytest.mark.parametrize(("count", "end"), [(5, "; known: 0, 1"), (6, " and more; known: 0, 1")])
def test_five_unknown_labels_are_listed(count: int, end: str) -> None:
    problems: list[Problem] = []
    checked_labels(np.repeat(np.arange(2, 2 + count), 3), Path("file"), [0, 1], problems)
    assert problems[0].detail == ", ".join(f"{value} (3 voxels)" for value in range(2, 7)) + end


def test_classes_leave_out_background_and_ignore(tmp_path: Path) -> None:
    file = write_dataset_json(tmp_path, {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, ".png")
    scheme = read_label_scheme(file)
    assert (scheme.file_ending, scheme.classes, scheme.ignore) == (".png", {"whole": (1, 2), "core": (2,)}, 3)


def test_an_ending_that_the_host_does_not_read_is_named() -> None:
    scheme = LabelScheme(".xyz", {"a": (1,)}, None, {"file_ending": ".xyz"})
    with pytest.raises(InputError, match=r"unknown file ending in a\.xyz: \.xyz\. Fix: use an ending"):
        find_reader(scheme, Path("a.xyz"))


def test_a_pair_is_cropped_to_what_either_holds(tmp_path: Path) -> None:
    """The box has a margin of one voxel; ignored voxels of the reference are background in both."""
    first, second = np.zeros((2, 12, 18, 16), np.uint8)
    first[5, 6, 7], second[5, 6, 9], second[5, 6, 7] = 1, 1, 2
    write(tmp_path / "p.nii.gz", first)
    write(tmp_path / "r.nii.gz", second)
    scheme = read_label_scheme(write_dataset_json(tmp_path, {"background": 0, "body": 1, "ignore": 2}))
    files = tmp_path / "p.nii.gz", tmp_path / "r.nii.gz"
    pair = read_pair(*files, find_reader(scheme, files[0]), PredictionLabels(scheme))
    assert pair.prediction.shape == pair.reference.shape == (3, 3, 5)
    assert (pair.prediction.sum(), pair.reference.sum(), pair.reference[1, 1, 3]) == (0, 1, 1)
    assert (pair.spacing, pair.spacing_in_header, pair.axes) == ((2.0, 1.0, 1.0), True, (0, 1, 2))


def test_everything_that_is_wrong_with_both_files_is_told(tmp_path: Path) -> None:
    for name in "pr":
        write(tmp_path / f"{name}.nii.gz", ball() * 5)
    scheme = read_label_scheme(write_dataset_json(tmp_path))
    files = tmp_path / "p.nii.gz", tmp_path / "r.nii.gz"
    with pytest.raises(InputError) as caught:
        read_pair(*files, find_reader(scheme, files[0]), PredictionLabels(scheme))
    assert [problem.where for problem in caught.value.problems] == list(files)
