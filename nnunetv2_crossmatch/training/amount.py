"""How much of each class the pseudo-labels hold, per voxel that labeled volumes hold on the average.

A network that learns from its own labels can let a class grow or vanish; Dice on labeled images does not show it.
Limit: numbers and one line; they have no part in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel

CURVE = "amount_"
"""What the names of the curves begin with; the rest is the name of a class or region."""
USUAL = (0.5, 2.0)


def amounts(labels: PseudoLabel, channels: int, shares: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Share of the voxels of ``labels`` over that in ``shares``, by curve; classes that no labeled volume has are out.

    Args:
        labels: of the weak view.
        channels: outputs of the network.
        shares: of the labeled volumes, by class or region in the order of the outputs.
    """
    found = labels.foreground_shares(channels)
    return {f"{CURVE}{name}": one / share for (name, share), one in zip(shares.items(), found, strict=False) if share}


def amount_warnings(
    curves: Mapping[str, Sequence[float]], epoch: int, weight: float, remedy: str = "labeledmix0p5 or a higher tau"
) -> list[str]:
    """A line for each class whose amount has left :data:`USUAL` in ``epoch``.

    Args:
        curves: a value per epoch by name.
        epoch: the last one.
        weight: of the unsupervised losses after the warm-up; before it an amount says nothing yet.
        remedy: what the method has against it.
    """
    names = [name for name in curves if name.startswith(CURVE)]
    return [
        f"The pseudo-labels hold {curves[name][epoch]:.2f} times as much of {name.removeprefix(CURVE)} as the labeled "
        f"volumes. If this lasts and the unlabeled images are not of another kind, try {remedy}."
        for name in names
        if _unusual(curves, name, epoch, weight) and not (epoch and _unusual(curves, name, epoch - 1, weight))
    ]


def _unusual(curves: Mapping[str, Sequence[float]], name: str, epoch: int, weight: float) -> bool:
    warm = "unsup_weight" not in curves or curves["unsup_weight"][epoch] > 0.99 * weight
    value = curves[name][epoch]
    return warm and (value < USUAL[0] or value > USUAL[1])  # NaN is neither
