"""Weak and strong views: shared geometry, changed intensities, the host's finish."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.data.views import GEOMETRY, Views, authors_intensity, repeatable, sort_transforms


def host_transforms(patch=(24, 24), dummy_2d=False, masks=(False,)) -> ComposeTransforms:
    axes = tuple(range(len(patch)))
    return nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), None, axes, dummy_2d, use_mask_for_norm=list(masks)
    )


def crop(patch=(24, 24), channels=1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(channels, *patch, generator=generator)
    return {"image": image, "segmentation": torch.zeros(1, *patch, dtype=torch.int16)}


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)


@pytest.mark.parametrize(("patch", "dummy_2d"), [((24, 24), False), ((12, 16, 16), False), ((6, 24, 24), True)])
def test_every_host_transform_is_sorted_and_none_is_lost(patch, dummy_2d):
    transforms = host_transforms(patch, dummy_2d, masks=(True,))
    groups = sort_transforms(transforms)
    assert sum(map(len, groups)) == len(transforms.transforms)
    assert {type(t) for t in groups.geometry} <= set(GEOMETRY)
    assert len(groups.geometry) == (4 if dummy_2d else 2)
    assert len(groups.intensity) == 7
    assert [isinstance(t, MaskImageTransform) for t in groups.finish] == [True, False]  # then the -1 label is removed


@pytest.mark.parametrize("patch", [(24, 24), (12, 16, 16)])
@pytest.mark.parametrize("recipe", ["host", "authors"])
def test_strong_views_always_differ_from_the_weak_one_and_from_each_other(patch, recipe):
    views = Views(host_transforms(patch), authors_intensity(len(patch)) if recipe == "authors" else None)
    for value in range(40):
        seed(value)
        weak, first, second = views(**crop(patch))["image"]
        assert not torch.equal(weak, first)
        assert not torch.equal(weak, second)
        assert not torch.equal(first, second)


def test_weak_view_has_no_intensity_change():
    """With the geometry switched off the weak view is the crop itself."""
    views = Views(host_transforms())
    views.geometry = []
    for value in range(20):
        seed(value)
        assert torch.equal(views(**crop())["image"][0], crop()["image"][0])


def test_views_share_their_geometry():
    """Without intensity changes the three views are equal, whatever the geometry did."""
    transforms = host_transforms()
    views = Views(ComposeTransforms([t for t in transforms.transforms if isinstance(t, GEOMETRY)]), [])
    views._changed = lambda weak: weak.clone()  # type: ignore[method-assign]
    moved = 0
    for value in range(20):
        seed(value)
        weak, first, second = views(**crop())["image"]
        assert torch.equal(weak, first)
        assert torch.equal(weak, second)
        moved += not torch.equal(weak, crop()["image"][0])
    assert moved > 10


def test_segmentation_follows_the_geometry():
    seed(1)
    sample = crop()
    sample["segmentation"] = (sample["image"] > 0).to(torch.int16)
    views = Views(host_transforms())
    views.geometry = [t for t in views.geometry if type(t).__name__ == "MirrorTransform"]
    result = views(**sample)
    assert torch.equal(result["segmentation"], (result["image"][:1] > 0).to(torch.int16))


def test_each_view_is_masked_outside_the_nonzero_region():
    sample = crop()
    sample["segmentation"][:, :, :12] = -1
    views = Views(host_transforms(masks=(True,)))
    assert any(isinstance(t, MaskImageTransform) for t in views.finish)
    views.geometry = []
    seed(0)
    result = views(**sample)["image"]
    assert (result[:, :, :12] == 0).all()
    assert (result[:, :, 12:] != 0).any(dim=(1, 2)).all()


def test_a_constant_crop_still_gets_different_views():
    """Only noise shows on it; it is drawn until it comes."""
    views = Views(host_transforms())
    seed(0)
    constant = {"image": torch.zeros(1, 24, 24), "segmentation": torch.zeros(1, 24, 24, dtype=torch.int16)}
    weak, first, second = views(**constant)["image"]
    assert not torch.equal(weak, first)
    assert not torch.equal(first, second)


def test_views_keep_all_channels_in_order():
    seed(0)
    result = Views(host_transforms(masks=(False, False)))(**crop(channels=2))["image"]
    assert result.shape == (6, 24, 24)
    weak = result[:2]
    assert torch.corrcoef(torch.stack([weak[0].flatten(), result[2].flatten()]))[0, 1] > 0.5


class Brighter(ImageOnlyTransform):
    """Adds the next of ``steps``, in place as the host's transforms work."""

    def __init__(self, *steps: float) -> None:
        super().__init__()
        self.steps = iter(steps)

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        return img.add_(next(self.steps))


def test_each_strong_view_is_made_of_the_weak_one():
    views = Views(host_transforms(), [RandomTransform(Brighter(1, 10), 1)])
    weak, first, second = views(**crop())["image"]
    assert torch.equal(first, weak + 1)
    assert torch.equal(second, weak + 10)


def recipe(dimensions: int) -> list[tuple]:
    """Type, chance and plain values of every change; of callables a sample's range."""
    found = []
    for transform in authors_intensity(dimensions):
        parts = getattr(transform.transform, "transforms", [transform.transform])
        for part in parts:
            values = {name: getattr(value, "contrast_range", value) for name, value in vars(part).items()}
            plain = {name: value for name, value in values.items() if not callable(value) and "benchmark" not in name}
            found.append((type(part).__name__, transform.apply_probability, plain))
    return found


BLUR = {"blur_sigma": (0.1, 2.0), "synchronize_channels": False, "synchronize_axes": False, "p_per_channel": 1}
JITTER = {"synchronize_channels": True, "p_per_channel": 1}


def test_the_authors_recipe_in_2d_is_jitter_and_blur():
    assert recipe(2) == [
        ("MultiplicativeBrightnessTransform", 0.8, {"multiplier_range": (0.5, 1.5), **JITTER}),
        ("ContrastTransform", 0.8, {"contrast_range": (0.5, 1.5), "preserve_range": False, **JITTER}),
        ("GaussianBlurTransform", 0.5, BLUR),
    ]
    assert [transform.apply_probability for transform in authors_intensity(2)] == [0.8, 0.5]  # jitter is one choice


def test_the_authors_recipe_in_3d_is_bias_field_gamma_and_blur():
    bias, gamma, blur = recipe(3)
    assert bias[:2] == ("BrightnessGradientAdditiveTransform", 0.5)
    assert (bias[2]["loc"], bias[2]["p_per_channel"]) == ((-0.5, 1.5), 1)
    assert gamma == (
        "GammaTransform", 0.5, {"gamma": (0.7, 1.5), "p_invert_image": 0, **JITTER, "p_retain_stats": 1}
    )  # fmt: skip
    assert blur == ("GaussianBlurTransform", 0.5, BLUR)


def test_the_bias_field_is_as_wide_as_half_the_patch_to_all_and_half_of_it_and_of_either_sign():
    seed(0)
    field = authors_intensity(3)[0].transform
    widths = [field.scale((10, 20, 40), 2) for _ in range(300)]
    strengths = [field.max_strength(torch.zeros(1), torch.zeros(1)) for _ in range(300)]
    assert (min(widths), max(widths)) == (pytest.approx(20, abs=1), pytest.approx(60, abs=1))
    assert (min(strengths), max(strengths)) == (pytest.approx(-1, abs=0.05), pytest.approx(1, abs=0.05))


@pytest.mark.parametrize("recipe", ["host", "authors"])
def test_views_made_later_are_the_views_made_in_loader(recipe):
    intensity = authors_intensity(2) if recipe == "authors" else None
    in_loader, on_device = (
        Views(repeatable(host_transforms(masks=(True,))), intensity, on_device=where) for where in (False, True)
    )
    for value in range(10):
        seed(value)
        expected = in_loader(**crop())
        seed(value)
        moved = on_device(**crop())
        assert moved["image"].shape == crop()["image"].shape
        assert torch.equal(on_device.of_crop(moved["image"], moved["segmentation"])["image"], expected["image"])


def test_the_blur_is_always_computed_the_same_way():
    """The host chooses by timing between two algorithms, which differ in the last bits."""
    blurs = [t for t in sort_transforms(repeatable(host_transforms())).intensity if hasattr(t.transform, "blur_sigma")]
    assert [blur.transform.benchmark for blur in blurs] == [False]
    seed(0)
    blurs[0].transform(**crop())
    assert not blurs[0].transform.benchmark_use_fft
