"""From probabilities to pseudo-labels, with what is learned on the way about each class: thresholds and shifts.

Sources: thresholds by class, CBST (Zou et al., ECCV 2018); amounts held near those of labeled data, DARS (He et al.,
ICCV 2021) and AdaMatch (Berthelot et al., ICLR 2022); sharpening, MixMatch (Berthelot et al., NeurIPS 2019).
Limit: what follows from one network's labels; the losses compare students with them.
Shapes: N samples, C channels, S spatial axes; K kinds of labels: the C classes, or every region outside and inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from nnunetv2_crossmatch.learning.exchange import sum_over_processes
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel, label_of

KEPT_RATE = 0.1  # of a threshold's log odds in a step, per difference of the shares
MOST_SURE = 16.0  # log odds; float32 has no probability between it and 1
AMOUNT_KEPT = 0.99  # of the mean amount in a step
USUAL_AMOUNT = 1.2  # up to which, and down to whose inverse, an amount is left as it is
SHIFT_RATE = 0.01  # of a shift in a step, per unit of the logarithm of the amount
LARGEST_SHIFT = 3.0
LEAST_AMOUNT = 0.01  # whose logarithm stands for that of all lesser ones
TEMPERATURE = 0.5  # of sharpened probabilities


class Labeling(nn.Module):
    """Pseudo-labels of probabilities: by one threshold, unless a remedy is asked for.

    Args:
        channels: outputs of the network.
        regions: a sigmoid per channel instead of a softmax.
        keep: share of the voxels of every kind of label that counts, by a threshold of its own; 0: one for all.
        align: whether a class whose amount leaves the usual range gets a shift of its logits.
        soft: whether the labels carry sharpened probabilities, too.

    Attributes:
        log_odds: (K,) thresholds of the confidence.
        amount: (C or C - 1,) moving mean of the share of a foreground class over its share in labeled volumes.
        shift: (C or C - 1,) added to the logits.
    """

    log_odds: torch.Tensor
    amount: torch.Tensor
    shift: torch.Tensor

    def __init__(self, channels: int, regions: bool, keep: float = 0.0, align: bool = False, soft: bool = False):
        super().__init__()
        self.channels, self.regions, self.keep, self.align, self.soft = channels, regions, keep, align, soft
        self.kinds = 2 * channels if regions else channels
        foreground = channels if regions else channels - 1
        if keep:
            self.register_buffer("log_odds", torch.zeros(self.kinds))
        if align:
            self.register_buffer("amount", torch.ones(foreground))
            self.register_buffer("shift", torch.zeros(foreground))

    def forward(self, probability: torch.Tensor, tau: float) -> PseudoLabel:
        """Labels of ``probability`` (N, C, S); ``tau`` counts unless every kind has its own threshold."""
        if self.align:
            probability = shifted(probability, self.shift, self.regions)
        label = label_of(probability, tau, self.regions)
        if self.keep:
            thresholds = torch.sigmoid(self.log_odds)[self._kind(label.labels)]
            label = label._replace(valid=label.confidence >= thresholds)
        return label._replace(soft=sharpened(probability, self.regions)) if self.soft else label

    def reference(self, label: PseudoLabel) -> PseudoLabel:
        """Labels of labeled images in the form of :meth:`forward`'s."""
        return label._replace(soft=one_hot(label.labels, self.channels)) if self.soft else label

    @torch.no_grad()
    def update(self, label: PseudoLabel, shares: Mapping[str, float]) -> None:
        """Follow the labels of a step.

        Args:
            label: of the weak view, as :meth:`forward` made it.
            shares: of the labeled volumes, by foreground class or region in the order of the outputs.
        """
        if not (self.keep or self.align):
            return
        kinds = self._kind(label.labels)
        masks = [kinds == kind for kind in range(self.kinds)]
        counts = torch.stack([torch.stack([mask.sum(), (mask & label.valid).sum()]) for mask in masks])
        found, counted = sum_over_processes(counts.to(label.confidence.dtype)).T
        if self.keep:
            self._move_thresholds(found, counted)
        if self.align:
            every = found.sum() / (self.channels if self.regions else 1)
            self._move_shifts(found[-len(self.shift) :] / every, found.new_tensor(list(shares.values())))

    def _kind(self, labels: torch.Tensor) -> torch.Tensor:
        """Number of the kind of each label."""
        if not self.regions:
            return labels.long()
        region = torch.arange(self.channels, device=labels.device).view(-1, *[1] * (labels.ndim - 2))
        return labels * self.channels + region

    def _move_thresholds(self, found: torch.Tensor, counted: torch.Tensor) -> None:
        """Towards the quantile 1 - keep of the confidence, without sorting: up where too many voxels count."""
        excess = counted / found.clamp(min=1) - self.keep
        moved = (self.log_odds + KEPT_RATE * excess).clamp(0, MOST_SURE)
        self.log_odds.copy_(torch.where(found > 0, moved, self.log_odds))

    def _move_shifts(self, share: torch.Tensor, wanted: torch.Tensor) -> None:
        """Against the part of each amount that is out of range; a class that no labeled volume has stays."""
        now = torch.where(wanted > 0, share / wanted.clamp(min=1e-12), self.amount)
        self.amount.mul_(AMOUNT_KEPT).add_((1 - AMOUNT_KEPT) * now)
        usual, size = math.log(USUAL_AMOUNT), self.amount.clamp(min=LEAST_AMOUNT).log()
        excess = size - size.clamp(-usual, usual)
        self.shift.sub_(SHIFT_RATE * excess).clamp_(-LARGEST_SHIFT, LARGEST_SHIFT)


def shifted(probability: torch.Tensor, shift: torch.Tensor, regions: bool) -> torch.Tensor:
    """Probabilities (N, C, S) after ``shift`` was added to the logits of all regions, or of all foreground classes."""
    factor = torch.exp(shift if regions else torch.cat([shift.new_zeros(1), shift]))
    odds = probability * factor.view(-1, *[1] * (probability.ndim - 2))
    return odds / (odds + 1 - probability) if regions else odds / odds.sum(1, keepdim=True)


def sharpened(probability: torch.Tensor, regions: bool, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Probabilities (N, C, S) of logits divided by ``temperature``, with gradient."""
    power = probability ** (1 / temperature)
    return power / (power + (1 - probability) ** (1 / temperature)) if regions else power / power.sum(1, keepdim=True)


def one_hot(labels: torch.Tensor, channels: int) -> torch.Tensor:
    """Probabilities 0 and 1 (N, C, S) of hard labels."""
    regions = labels.dtype == torch.bool
    return labels.float() if regions else functional.one_hot(labels.long(), channels).movedim(-1, 1).float()
