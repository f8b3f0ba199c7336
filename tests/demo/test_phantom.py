from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.ndimage import label as components

from nnunetv2_crossmatch.demo.phantom import Phantom, generate_case, write_dataset

SMALL = (32, 32, 12)


@pytest.fixture(scope="module")
def cases() -> list[Phantom]:
    return [generate_case(np.random.default_rng([0, index])) for index in range(12)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, labeled=2, unlabeled=3, test=1, shape=SMALL)
    return folder


def test_images_have_mean_zero_and_deviation_one(cases: list[Phantom]):
    moments = [(case.image.mean(), case.image.std()) for case in cases]
    np.testing.assert_allclose(moments, [(0, 1)] * len(cases), atol=1e-3)


def test_the_atrium_has_the_volume_share_of_the_public_crops(cases: list[Phantom]):
    shares = [case.label.mean() for case in cases]
    assert 0.02 < min(shares)
    assert max(shares) < 0.2


def test_most_of_the_atrium_is_one_piece(cases: list[Phantom]):
    for case in cases:
        pieces, _ = components(case.label)
        assert np.bincount(pieces.ravel())[1:].max() > 0.85 * case.label.sum()


def test_sizes_vary_between_cases(cases: list[Phantom]):
    sizes = [int(case.label.sum()) for case in cases]
    assert max(sizes) > 1.5 * min(sizes)


def test_an_intensity_threshold_does_not_segment_the_atrium(cases: list[Phantom]):
    for case in cases:
        bright = case.image > np.median(case.image[case.label > 0])
        assert (bright & (case.label == 0)).sum() > 0.3 * case.label.sum()


def test_the_same_generator_state_gives_the_same_case():
    first, second = (generate_case(np.random.default_rng(7), SMALL) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)


def test_the_h5_layout_is_the_public_one(written: Path):
    with h5py.File(written / "train00" / "mri_norm2.h5") as file:
        found = {name: (data.dtype, data.shape) for name, data in file.items()}
    assert found == {"image": (np.float32, SMALL), "label": (np.uint8, SMALL)}


def test_the_splits_contain_every_case_once(written: Path):
    splits = json.loads((written / "splits.json").read_text())
    assert sorted(splits["train"] + splits["test"]) == sorted(path.name for path in written.iterdir() if path.is_dir())


def test_the_labeled_cases_are_the_first_training_cases(written: Path):
    assert json.loads((written / "splits.json").read_text())["labeled"] == {"2": ["train00", "train01"]}
