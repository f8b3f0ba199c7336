"""Channels that are nearly the label are found, images are not."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TinyDataset, blob_case
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy.ndimage import gaussian_filter

from nnunetv2_crossmatch.cli.environment_checks import NOTE, check_dataset
from nnunetv2_crossmatch.cli.label_like_channels import NEARLY_THE_LABEL, explained_share


@pytest.mark.parametrize("sigma", [0, 0.5])
def test_a_label_in_other_numbers_and_a_smooth_one_are_nearly_the_label(sigma: float) -> None:
    labels = blob_case(0)[1]
    noise = np.random.default_rng(0).normal(size=labels.shape) * 0.02
    assert explained_share(gaussian_filter(-3.0 * labels, sigma) + noise, labels) > NEARLY_THE_LABEL


def test_an_image_is_not(tiny_dataset: TinyDataset) -> None:
    image, labels = blob_case(0)
    assert 0.1 < explained_share(image, labels) < NEARLY_THE_LABEL
    assert explained_share(np.zeros_like(image), labels) == 0


def test_the_share_is_that_of_the_analysis_of_variance() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, size=(5, 6))
    values = random.normal(size=(5, 6)) + labels
    between = sum((labels == one).sum() * (values[labels == one].mean() - values.mean()) ** 2 for one in range(3))
    assert explained_share(values, labels) == pytest.approx(between / ((values - values.mean()) ** 2).sum())


def test_the_check_names_such_a_channel(prepared_copy: TinyDataset) -> None:
    folder = prepared_copy.preprocessed / "nnUNetPlans_2d"
    cases = nnUNetDatasetBlosc2(str(folder))
    for name in cases.identifiers:
        data, labels, _, properties = cases.load_case(name)
        data, labels = data[:], labels[:]
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{ending}").unlink()
        cases.save_case(np.concatenate([data, labels.astype(np.float32)]), labels, properties, str(folder / name))
    results = {result.what: result for result in check_dataset("998", ["2d"], "nnUNetPlans")}
    found = results["channel 1, 2d"]
    assert found.state == NOTE
    assert "100 % of its variance follows from the label" in found.detail
    assert "channel 0, 2d" not in results
