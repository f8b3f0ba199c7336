"""One weak and several strong views of an unlabeled crop, out of the host's own augmentation.

The host's transforms are sorted into geometry (shared by the views), intensity (drawn anew for each strong view) and
finish. Limit: CutMix needs the whole batch and happens later; labels that come along are moved, never looked at.
Shapes: image (C, S), segmentation (1, S); n views come out as (n C, S): weak, strong1, strong2, ...
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Sorted(NamedTuple):
    """The host's transforms by what they change, each group in the host's order."""

    geometry: list[BasicTransform]
    intensity: list[RandomTransform]
    finish: list[BasicTransform]


def sort_transforms(transforms: ComposeTransforms) -> Sorted:
    """Sort the host's training transforms.

    Intensity are the random image-only transforms; geometry moves voxels; the rest finishes. The host mirrors after the
    intensity changes; mirroring before them has the same distribution, since none of them prefers a side.
    """
    groups = Sorted([], [], [])
    for transform in transforms.transforms:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        if isinstance(transform, RandomTransform) and isinstance(inner, ImageOnlyTransform):
            groups.intensity.append(transform)
        elif isinstance(inner, GEOMETRY):
            groups.geometry.append(transform)
        else:
            groups.finish.append(transform)
    return groups


class Views(BasicTransform):
    """Host-style transform from one crop to its views, stacked along the channels: weak, strong1, strong2, ...

    Args:
        transforms: the host's training transforms without deep supervision, regions and cascade.
        intensity: what makes a view strong instead of the host's own intensity changes.
        strong_views: how many strong views.
        on_device: move the crop only; the trainer makes the views of it on its device, by :meth:`of_crop`.
    """

    def __init__(
        self,
        transforms: ComposeTransforms,
        intensity: Sequence[RandomTransform] | None = None,
        strong_views: int = 2,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        self.strong_views, self.on_device = strong_views, on_device
        self.geometry, host_intensity, self.finish = sort_transforms(transforms)
        self.intensity = list(host_intensity if intensity is None else intensity)

    def apply(self, data_dict: dict, **params: object) -> dict:
        """Replace ``image`` (C, S) by its views (views * C, S); ``segmentation`` follows the geometry."""
        for transform in self.geometry:
            data_dict = transform(**data_dict)
        return data_dict if self.on_device else self.of_crop(data_dict["image"], data_dict["segmentation"])

    def of_crop(self, weak: torch.Tensor, segmentation: torch.Tensor) -> dict:
        """The views of a moved crop, on its device."""
        changed: list[torch.Tensor] = []
        for _ in range(self.strong_views):
            changed.append(self._strong(weak, changed))
        strong = [self._finished(view, segmentation) for view in changed]
        sample = {"image": weak, "segmentation": segmentation}
        for transform in self.finish:
            sample = transform(**sample)
        return {**sample, "image": torch.cat([sample["image"], *strong])}

    def _strong(self, weak: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
        """An intensity-changed copy that differs from ``weak`` and ``others``, unless the crop can't be changed.

        Drawn again until it differs: some of the host's changes spare every channel by chance, and on a constant crop
        only noise shows.
        """
        view = weak
        for _ in range(MAX_DRAWS):
            view = self._changed(weak)
            if not any(torch.equal(view, other) for other in (weak, *others)):
                break
        return view

    def _changed(self, weak: torch.Tensor) -> torch.Tensor:
        chance = torch.tensor([transform.apply_probability for transform in self.intensity])
        chosen = torch.rand(len(self.intensity)) < chance
        if not chosen.any():
            chosen[torch.multinomial(chance, 1)] = True
        sample = {"image": weak.clone()}  # the host's transforms work in place
        for transform, applies in zip(self.intensity, chosen.tolist(), strict=True):
            if applies:
                drawn = transform.transform.get_parameters(**sample)
                with weak.device:  # the blur makes its kernel on whatever the default device is
                    sample = transform.transform.apply(sample, **drawn)
        return sample["image"]

    def _finished(self, image: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        """``image`` after the part of the finish that changes images; the segmentation is finished once, elsewhere."""
        sample = {"image": image, "segmentation": segmentation}
        for transform in self.finish:
            if not isinstance(transform, SegOnlyTransform):
                sample = transform(**sample)
        return sample["image"]


def repeatable(transforms: ComposeTransforms) -> ComposeTransforms:
    """``transforms``, with the blur always computed the same way.

    The host's chooses between two algorithms by timing them, so that equal draws differ in the last bits.
    """
    for transform in transforms.transforms:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return transforms


def authors_intensity(dimensions: int) -> list[RandomTransform]:
    """The strong views of the authors' released code, for comparisons.

    3d: bias field, gamma, blur. 2d: brightness and contrast jitter (0.8), blur (0.5). Built on batchgeneratorsv2, whose
    smooth additive gradient stands for the multiplicative bias field, since nnU-Net's images are centred on 0.
    """
    blur = GaussianBlurTransform(blur_sigma=(0.1, 2.0), p_per_channel=1)
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


class ComposeIntensity(ComposeTransforms, ImageOnlyTransform):
    """Several intensity changes that come together or not at all."""


def _gradient_width(shape: Sequence[int], axis: int) -> float:
    """Standard deviation in voxels of the bias field's bump: about the patch."""
    return float(shape[axis] * (0.5 + torch.rand(1).item()))


def _gradient_strength(image: torch.Tensor, gradient: torch.Tensor) -> float:
    """Peak of the bias field in standard deviations of the data set's intensities, of either sign."""
    return float(torch.empty(1).uniform_(-1.0, 1.0).item())
