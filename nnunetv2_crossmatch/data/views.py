"""One weak and several strong views of an unlabeled crop, made with nnU-Net's own augmentation.

nnU-Net's transforms are grouped into geometry (applied once for all views), intensity (drawn anew for each strong
view) and other. Shapes: image (C, S), segmentation (1, S); n views come out as (n C, S): weak, strong1, strong2, ...
Limit: CutMix, which needs the whole batch, is applied in the training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.local.brightness_gradient import BrightnessGradientAdditiveTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

GEOMETRY = (SpatialTransform, MirrorTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)
MAX_DRAWS = 100


class TransformGroups(NamedTuple):
    """nnU-Net's transforms by kind, each group in nnU-Net's order."""

    geometry: list[BasicTransform]
    intensity: list[RandomTransform]
    other: list[BasicTransform]


def group_transforms(transforms: ComposeTransforms) -> TransformGroups:
    """Group nnU-Net's training transforms.

    Random image-only transforms are ``intensity``, spatial transforms ``geometry``, the remaining ones ``other``.
    nnU-Net mirrors after the intensity transforms; mirroring before them gives the same distribution, since all of them
    are symmetric.
    """
    groups = TransformGroups([], [], [])
    for transform in transforms.transforms:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        if isinstance(transform, RandomTransform) and isinstance(inner, ImageOnlyTransform):
            groups.intensity.append(transform)
        elif isinstance(inner, GEOMETRY):
            groups.geometry.append(transform)
        else:
            groups.other.append(transform)
    return groups


class WeakStrongViews(BasicTransform):
    """Transform from one crop to its views, concatenated along the channels: weak, strong1, strong2, ...

    Args:
        transforms: nnU-Net's training transforms without deep supervision, regions and cascade.
        intensity: transforms of the strong views in place of nnU-Net's intensity transforms.
        strong_views: how many strong views.
        geometry_only: apply the geometric transforms only; :meth:`make_views` is called later, on the device.
    """

    def __init__(
        self,
        transforms: ComposeTransforms,
        intensity: Sequence[RandomTransform] | None = None,
        strong_views: int = 2,
        geometry_only: bool = False,
    ) -> None:
        super().__init__()
        self.strong_views, self.geometry_only = strong_views, geometry_only
        self.geometry, nnunet_intensity, self.other = group_transforms(transforms)
        self.intensity = list(nnunet_intensity if intensity is None else intensity)
        self.compares = True  # each view with those before it, which waits for a GPU

    def apply(self, data_dict: dict, **params: object) -> dict:
        """Replace ``image`` (C, S) by its views (n C, S); ``segmentation`` gets the geometric transforms only."""
        for transform in self.geometry:
            data_dict = transform(**data_dict)
        return data_dict if self.geometry_only else self.make_views(data_dict["image"], data_dict["segmentation"])

    def make_views(self, weak: torch.Tensor, segmentation: torch.Tensor) -> dict:
        """The views of a geometrically augmented crop, on its device."""
        changed: list[torch.Tensor] = []
        for _ in range(self.strong_views):
            changed.append(self._strong_view(weak, changed))
        strong = [self._finish_image(view, segmentation) for view in changed]
        sample = {"image": weak, "segmentation": segmentation}
        for transform in self.other:
            sample = transform(**sample)
        return {**sample, "image": torch.cat([sample["image"], *strong])}

    def make_all_views(self, crops: torch.Tensor, segmentations: torch.Tensor) -> torch.Tensor:
        """Views (U, n C, S) of crops (U, C, S), on their device.

        A GPU is waited for once, when all views are there: those of a sample that are equal are made anew.
        """
        samples = list(zip(crops, segmentations, strict=True))
        if not crops.is_cuda:
            return torch.stack([self.make_views(*sample)["image"] for sample in samples])
        return self._compared_at_once(samples)

    def _compared_at_once(self, samples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        self.compares, compared = False, self.compares
        made = torch.stack([self.make_views(*sample)["image"] for sample in samples])
        self.compares = compared
        views = made.unflatten(1, (self.strong_views + 1, -1)).flatten(2)
        equal = torch.stack([(views[:, a] == views[:, b]).all(1) for a, b in combinations(range(views.shape[1]), 2)])
        for sample, is_equal in enumerate(equal.any(0).tolist()):
            if is_equal:
                made[sample] = self.make_views(*samples[sample])["image"]
        return made

    def _strong_view(self, weak: torch.Tensor, used_views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Copy with other intensities that differs from ``weak`` and ``used_views`` unless that is impossible.

        Up to :data:`MAX_DRAWS` draws: nnU-Net's transforms may skip all channels by chance, and on a constant crop only
        noise has an effect.
        """
        view = weak
        for _ in range(MAX_DRAWS):
            view = self._change_intensity(weak)
            if not self.compares or not any(torch.equal(view, used_view) for used_view in (weak, *used_views)):
                break
        return view

    def _change_intensity(self, weak: torch.Tensor) -> torch.Tensor:
        probabilities = torch.tensor([transform.apply_probability for transform in self.intensity])
        chosen = torch.rand(len(self.intensity)) < probabilities
        if not chosen.any():
            chosen[torch.multinomial(probabilities, 1)] = True
        sample = {"image": weak.clone()}  # nnU-Net's transforms work in place
        for transform, applies in zip(self.intensity, chosen.tolist(), strict=True):
            if applies:
                drawn = transform.transform.get_parameters(**sample)
                with weak.device:  # the blur makes its kernel on the default device
                    sample = transform.transform.apply(sample, **drawn)
        return sample["image"]

    def _finish_image(self, image: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        """``image`` after the ``other`` transforms that change images; the segmentation is transformed once."""
        sample = {"image": image, "segmentation": segmentation}
        for transform in self.other:
            if not isinstance(transform, SegOnlyTransform):
                sample = transform(**sample)
        return sample["image"]


def with_deterministic_blur(transforms: ComposeTransforms) -> ComposeTransforms:
    """``transforms`` with a blur that always uses the same algorithm.

    nnU-Net's blur chooses the faster of two algorithms, whose results differ in the last bits.
    """
    for transform in transforms.transforms:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return transforms


def authors_intensity_transforms(dimensions: int) -> list[RandomTransform]:
    """Intensity transforms like those of the authors' released code, for comparisons.

    3d: bias field, gamma, blur. 2d: brightness and contrast jitter (0.8), blur (0.5). Built from batchgeneratorsv2. Its
    smooth additive gradient replaces the multiplicative bias field because nnU-Net's images have mean 0.
    """
    blur = FittingBlur(blur_sigma=(0.1, 2.0), p_per_channel=1)
    if dimensions == 2:
        jitter = ComposeIntensity(
            [
                MultiplicativeBrightnessTransform(BGContrast((0.5, 1.5)), synchronize_channels=True),
                ContrastTransform(BGContrast((0.5, 1.5)), preserve_range=False, synchronize_channels=True),
            ]
        )
        return [RandomTransform(jitter, 0.8), RandomTransform(blur, 0.5)]
    bias = BrightnessGradientAdditiveTransform(scale=_gradient_width, loc=(-0.5, 1.5), max_strength=_gradient_strength)
    gamma = GammaTransform(
        BGContrast((0.7, 1.5)), p_invert_image=0, synchronize_channels=True, p_per_channel=1, p_retain_stats=1
    )
    return [RandomTransform(bias, 0.5), RandomTransform(gamma, 0.5), RandomTransform(blur, 0.5)]


class FittingBlur(GaussianBlurTransform):
    """Blur that is no wider than the patch: it pads 3 standard deviations by reflection, less than an axis is long."""

    def get_parameters(self, **data_dict: torch.Tensor) -> dict:
        """As drawn, with standard deviations (channel, axis) in voxels that fit the image (C, S)."""
        drawn = super().get_parameters(**data_dict)
        widest = [(2 * length - 1.5) / 6 for length in data_dict["image"].shape[1:]]
        return {**drawn, "sigmas": [list(map(min, sigmas, widest)) for sigmas in drawn["sigmas"]]}


class ComposeIntensity(ComposeTransforms, ImageOnlyTransform):
    """Several intensity transforms that are applied together."""


def _gradient_width(shape: Sequence[int], axis: int) -> float:
    """Standard deviation in voxels of the bias field's Gaussian: 0.5 to 1.5 times the patch size."""
    return float(shape[axis] * (0.5 + torch.rand(1).item()))


def _gradient_strength(image: torch.Tensor, gradient: torch.Tensor) -> float:
    """Maximum of the bias field, -1 to 1 standard deviations of the data set's intensities."""
    return float(torch.empty(1).uniform_(-1.0, 1.0).item())
