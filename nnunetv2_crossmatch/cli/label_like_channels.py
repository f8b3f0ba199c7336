"""Channels that are nearly the label, as an earlier prediction or an atlas: a model would copy them and learn nothing.

Limit: looks at a few preprocessed labeled cases, and at each channel alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

CASES = 3
NEARLY_THE_LABEL = 0.9
"""Share of a channel's variance that follows from the label. In images noise and other organs keep it far below."""


def label_like_channels(labeled: Path) -> dict[int, float]:
    """Share of the variance that follows from the label, for the channels of which it is large in all cases.

    Args:
        labeled: folder of the preprocessed labeled cases, of which the first :data:`CASES` are read.
    """
    cases = infer_dataset_class(str(labeled))(str(labeled))
    shares = []
    for name in cases.identifiers[:CASES]:
        data, labels, *_ = cases.load_case(name)
        shares.append([explained_share(channel, labels[0]) for channel in data[:]])
    lowest = np.min(shares, axis=0, initial=1.0)
    return {channel: float(share) for channel, share in enumerate(lowest) if share > NEARLY_THE_LABEL}


def explained_share(channel: np.ndarray, labels: np.ndarray) -> float:
    """Share of the variance of ``channel`` that lies between the labels (correlation ratio); 0 if it is constant."""
    values, groups = channel.ravel().astype(np.float64), np.unique(labels, return_inverse=True)[1].ravel()
    deviations = values - values.mean()
    total = float((deviations**2).sum())
    sums = np.bincount(groups, weights=deviations)
    return float((sums**2 / np.bincount(groups)).sum()) / total if total else 0.0
