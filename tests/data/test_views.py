"""Weak and strong views: equal geometry, different intensities, nnU-Net's other transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from waits import noticed_waits

from nnunetv2_crossmatch.data.views import (
    GEOMETRY,
    WeakStrongViews,
    authors_intensity_transforms,
    group_transforms,
    with_deterministic_blur,
)


def nnunet_transforms(patch=(24, 24), dummy_2d=False, masks=(False,)) -> ComposeTransforms:
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
def test_every_nnunet_transform_is_in_one_group(patch, dummy_2d):
    transforms = nnunet_transforms(patch, dummy_2d, masks=(True,))
    groups = group_transforms(transforms)
    assert sum(map(len, groups)) == len(transforms.transforms)
    assert {type(t) for t in groups.geometry} <= set(GEOMETRY)
    assert len(groups.geometry) == (4 if dummy_2d else 2)
    assert len(groups.intensity) == 7
    assert [isinstance(t, MaskImageTransform) for t in groups.other] == [True, False]  # then the -1 label is removed


@pytest.mark.parametrize("patch", [(24, 24), (12, 16, 16)])
@pytest.mark.parametrize("recipe", ["nnunet", "authors"])
def test_strong_views_always_differ_from_the_weak_one_and_from_each_other(patch, recipe):
    views = WeakStrongViews(
        nnunet_transforms(patch), authors_intensity_transforms(len(patch)) if recipe == "authors" else None
    )
    for value in range(40):
        seed(value)
        weak, first, second = views(**crop(patch))["image"]
        assert not torch.equal(weak, first)
        assert not torch.equal(weak, second)
        assert not torch.equal(first, second)


def test_weak_view_has_no_intensity_change():
    """Without geometric transforms the weak view equals the crop."""
    views = WeakStrongViews(nnunet_transforms())
    views.geometry = []
    for value in range(20):
        seed(value)
        assert torch.equal(views(**crop())["image"][0], crop()["image"][0])


def test_views_share_their_geometry():
    """Without intensity transforms the three views are equal."""
    transforms = nnunet_transforms()
    views = WeakStrongViews(ComposeTransforms([t for t in transforms.transforms if isinstance(t, GEOMETRY)]), [])
    views._change_intensity = lambda weak: weak.clone()  # type: ignore[method-assign]
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
    views = WeakStrongViews(nnunet_transforms())
    views.geometry = [t for t in views.geometry if type(t).__name__ == "MirrorTransform"]
    result = views(**sample)
    assert torch.equal(result["segmentation"], (result["image"][:1] > 0).to(torch.int16))


def test_each_view_is_masked_outside_the_nonzero_region():
    sample = crop()
    sample["segmentation"][:, :, :12] = -1
    views = WeakStrongViews(nnunet_transforms(masks=(True,)))
    assert any(isinstance(t, MaskImageTransform) for t in views.other)
    views.geometry = []
    seed(0)
    result = views(**sample)["image"]
    assert (result[:, :, :12] == 0).all()
    assert (result[:, :, 12:] != 0).any(dim=(1, 2)).all()


def test_a_constant_crop_still_gets_different_views():
    """Only noise changes it; views are drawn again until noise is applied."""
    views = WeakStrongViews(nnunet_transforms())
    seed(0)
    constant = {"image": torch.zeros(1, 24, 24), "segmentation": torch.zeros(1, 24, 24, dtype=torch.int16)}
    weak, first, second = views(**constant)["image"]
    assert not torch.equal(weak, first)
    assert not torch.equal(first, second)


def test_views_of_a_batch_on_a_gpu_are_compared_in_one_reading():
    """Here on the CPU."""
    views = WeakStrongViews(nnunet_transforms(), [RandomTransform(AddNext(*range(1, 20)), 1)])
    samples = [(crop()["image"], crop()["segmentation"]) for _ in range(3)]
    with noticed_waits() as found:
        made = views._compared_at_once(samples)
    assert "aten::equal" not in found
    assert made[:, :, 0, 0] - made[:, :1, 0, 0] == pytest.approx(torch.tensor([[0, 1, 2], [0, 3, 4], [0, 5, 6]]))


def test_equal_views_of_a_batch_on_a_gpu_are_made_anew():
    """Nothing but noise changes the constant crop."""
    views = WeakStrongViews(nnunet_transforms())
    samples = [(torch.zeros(1, 24, 24), torch.zeros(1, 24, 24, dtype=torch.int16)) for _ in range(4)]
    seed(0)
    for weak, first, second in views._compared_at_once(samples):
        assert not any(torch.equal(a, b) for a, b in ((weak, first), (weak, second), (first, second)))
    assert views.compares


def test_views_keep_all_channels_in_order():
    seed(0)
    result = WeakStrongViews(nnunet_transforms(masks=(False, False)))(**crop(channels=2))["image"]
    assert result.shape == (6, 24, 24)
    weak = result[:2]
    assert torch.corrcoef(torch.stack([weak[0].flatten(), result[2].flatten()]))[0, 1] > 0.5


class AddNext(ImageOnlyTransform):
    """Add the next of ``values``, in place as nnU-Net's transforms work."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = iter(values)

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        return img.add_(next(self.values))


def test_each_strong_view_is_made_of_the_weak_one():
    views = WeakStrongViews(nnunet_transforms(), [RandomTransform(AddNext(1, 10), 1)])
    weak, first, second = views(**crop())["image"]
    assert torch.equal(first, weak + 1)
    assert torch.equal(second, weak + 10)


def authors_recipe(dimensions: int) -> list[tuple]:
    """Type, probability and plain values of every transform; of callable ranges their limits."""
    found = []
    for transform in authors_intensity_transforms(dimensions):
        for part in getattr(transform.transform, "transforms", [transform.transform]):
            values = {name: getattr(value, "contrast_range", value) for name, value in vars(part).items()}
            plain = {name: value for name, value in values.items() if not callable(value) and "benchmark" not in name}
            found.append((type(part).__name__, transform.apply_probability, plain))
    return found


BLUR = {"blur_sigma": (0.1, 2.0), "synchronize_channels": False, "synchronize_axes": False, "p_per_channel": 1}
JITTER = {"synchronize_channels": True, "p_per_channel": 1}


def test_the_authors_recipe_in_2d_is_jitter_and_blur():
    assert authors_recipe(2) == [
        ("MultiplicativeBrightnessTransform", 0.8, {"multiplier_range": (0.5, 1.5), **JITTER}),
        ("ContrastTransform", 0.8, {"contrast_range": (0.5, 1.5), "preserve_range": False, **JITTER}),
        ("FittingBlur", 0.5, BLUR),
    ]
    assert [one.apply_probability for one in authors_intensity_transforms(2)] == [0.8, 0.5]  # jitter is drawn once


def test_the_authors_recipe_in_3d_is_bias_field_gamma_and_blur():
    bias, gamma, blur = authors_recipe(3)
    assert bias[:2] == ("BrightnessGradientAdditiveTransform", 0.5)
    assert (bias[2]["loc"], bias[2]["p_per_channel"]) == ((-0.5, 1.5), 1)
    assert gamma == (
        "GammaTransform", 0.5, {"gamma": (0.7, 1.5), "p_invert_image": 0, **JITTER, "p_retain_stats": 1}
    )  # fmt: skip
    assert blur == ("FittingBlur", 0.5, BLUR)


def test_the_bias_field_has_half_to_one_and_a_half_patches_of_width_and_either_sign():
    seed(0)
    field = authors_intensity_transforms(3)[0].transform
    widths = [field.scale((10, 20, 40), 2) for _ in range(300)]
    strengths = [field.max_strength(torch.zeros(1), torch.zeros(1)) for _ in range(300)]
    assert (min(widths), max(widths)) == (pytest.approx(20, abs=1), pytest.approx(60, abs=1))
    assert (min(strengths), max(strengths)) == (pytest.approx(-1, abs=0.05), pytest.approx(1, abs=0.05))


@pytest.mark.parametrize("recipe", ["nnunet", "authors"])
def test_views_made_from_the_augmented_crop_equal_those_of_the_transform(recipe):
    intensity = authors_intensity_transforms(2) if recipe == "authors" else None
    at_once, geometry_only = (
        WeakStrongViews(with_deterministic_blur(nnunet_transforms(masks=(True,))), intensity, geometry_only=when)
        for when in (False, True)
    )
    for value in range(10):
        seed(value)
        expected = at_once(**crop())
        seed(value)
        moved = geometry_only(**crop())
        assert moved["image"].shape == crop()["image"].shape
        assert torch.equal(geometry_only.make_views(moved["image"], moved["segmentation"])["image"], expected["image"])


def test_the_blur_is_always_computed_the_same_way():
    """nnU-Net's blur uses the faster of two algorithms, whose results differ in the last bits."""
    blurs = [
        t
        for t in group_transforms(with_deterministic_blur(nnunet_transforms())).intensity
        if hasattr(t.transform, "blur_sigma")
    ]
    assert [blur.transform.benchmark for blur in blurs] == [False]
    seed(0)
    blurs[0].transform(**crop())
    assert not blurs[0].transform.benchmark_use_fft


@pytest.mark.parametrize("shape", [(4, 16, 16), (1, 8, 8), (2, 2, 2), (3, 16)])
def test_the_authors_recipe_takes_a_patch_of_few_slices(shape: tuple[int, ...]) -> None:
    """The blur pads up to 6 voxels by reflection, which must be less than the axis is long."""
    views = WeakStrongViews(ComposeTransforms([]), authors_intensity_transforms(len(shape)), 2)
    for _ in range(40):
        sample = views(image=torch.randn(1, *shape), segmentation=torch.zeros(1, *shape))
        assert sample["image"].isfinite().all()
