"""What depends on the shape of a label: its largest connected component, and the distance from its boundary.

Limit: computed on the CPU, one image and class after the other.
Shapes: N images, C channels, S spatial axes; labels as in ``pseudo_labels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.ndimage import label as numbered

from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, reference_label


def masks_of(labels: torch.Tensor, channels: int) -> torch.Tensor:
    """Masks (N, foreground classes or regions, S) of labels; ``channels``: outputs of the network."""
    if labels.dtype == torch.bool:
        return labels
    return torch.stack([labels == value for value in range(1, channels)], 1)


def largest_components(labels: torch.Tensor, channels: int) -> torch.Tensor:
    """Labels of which the largest connected component of every foreground class or region stays, and any as large."""
    masks = masks_of(labels, channels).cpu().numpy()
    kept = np.stack([np.stack([_largest_component(mask) for mask in image]) for image in masks])
    stays = torch.from_numpy(kept).to(labels.device)
    return stays if labels.dtype == torch.bool else labels * stays.any(1)


def _largest_component(mask: np.ndarray) -> np.ndarray:
    # acvl-utils' function takes the square of the number of components: an untrained network predicts thousands.
    components, _ = numbered(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return mask & (sizes == sizes.max())[components]


def signed_distances(
    target: Any, channels: int, regions: bool, spacing: Sequence[float] = (), dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """:func:`distance_maps` of a target as the host's loss takes it, at full resolution; NaN where not known."""
    full = target[0] if isinstance(target, list) else target
    distances, known = distance_maps(reference_label(full, channels, regions), channels, spacing, dtype)
    return distances.masked_fill(~known, torch.nan)


def distance_maps(
    label: PseudoLabel, channels: int, spacing: Sequence[float] = (), dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed distances from the boundary of every foreground class or region, and where they are known.

    Both are (N, foreground classes or regions, S). Distances are negative inside, 0 on the inner boundary, and divided
    by the largest of the image on either side; a mask that is empty or fills the image has distance 0. Where ``label``
    is not valid, and farther from the boundary than from such a voxel, a distance is not known.

    Args:
        label: of labeled images.
        channels: outputs of the network.
        spacing: voxel size in mm; empty: distances in voxels.
        dtype: of the distances.
    """
    masks = masks_of(label.labels, channels)
    known = (label.valid if label.valid.ndim == masks.ndim else label.valid[:, None]).expand_as(masks)
    masks = masks & known
    pairs = zip(masks.flatten(0, 1).cpu().numpy(), known.flatten(0, 1).cpu().numpy(), strict=True)
    maps, valid = zip(*(_distance_map(mask, where, spacing or None) for mask, where in pairs), strict=True)
    distances, are_known = (torch.from_numpy(np.stack(each)).unflatten(0, masks.shape[:2]) for each in (maps, valid))
    return distances.to(dtype).to(masks.device), are_known.to(masks.device)


def _distance_map(
    mask: np.ndarray, known: np.ndarray, spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    if mask.all() or not mask.any():
        return np.zeros(mask.shape), np.full(mask.shape, known.all())
    outside, inside = (distance_transform_edt(each, spacing) for each in (~mask, mask))
    valid = known if known.all() else known & (outside + inside <= distance_transform_edt(known, spacing))
    distance = outside / outside.max() - inside / inside.max()
    distance[mask & ~binary_erosion(mask, border_value=1)] = 0
    return distance, valid
