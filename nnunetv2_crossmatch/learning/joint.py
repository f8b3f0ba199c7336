"""Labeled and pseudo-labeled images under one loss of the host: its target for both kinds of images.

Source: nnFilterMatch (arXiv 2509.19746). Limit: makes targets; the loss is the host's.
Shapes: B labeled and U pseudo-labeled images, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import interpolate

from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel


def joint_target(target: Any, labels: Sequence[PseudoLabel], channels: int) -> Any:
    """``target`` of the labeled images, followed by ``labels``, in the form that the host's loss takes.

    Args:
        target: (B, 1 or regions, S), with deep supervision a list of it at each scale.
        labels: of the pseudo-labeled images, each (U, S) or (U, regions, S). Voxels that are not valid are ignored if
            the data set has an ignore label; otherwise all count.
        channels: outputs of the network.
    """
    scales = target if isinstance(target, list) else [target]
    added = torch.cat([_as_target(label, scales[0], channels) for label in labels])
    joined = [torch.cat([scale, resized(added, scale)]) for scale in scales]
    return joined if isinstance(target, list) else joined[0]


def _as_target(label: PseudoLabel, target: torch.Tensor, channels: int) -> torch.Tensor:
    """One label with the channels and dtype of ``target``."""
    labels, valid = label.labels, label.valid
    if labels.ndim < target.ndim:
        return torch.where(valid, labels.to(target.dtype), channels)[:, None]
    ignored = ~valid.all(1, keepdim=True)
    return torch.cat([labels, ignored], dim=1)[:, : target.shape[1]].to(target.dtype)


def resized(target: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``target`` at the resolution of ``scale``, as the host makes it: by the nearest voxel."""
    size = scale.shape[2:]
    return target if target.shape[2:] == size else interpolate(target.float(), size, mode="nearest-exact").to(scale)
