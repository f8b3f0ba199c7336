"""Which part of the labeled volumes each class or region takes, as they are.

The loader shows the network more foreground than there is; what pseudo-labels of uniformly drawn crops are compared
with is the share in whole volumes. Limit: partly annotated volumes tell no share.
"""

from __future__ import annotations

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

MOST_CASES = 25  # volumes that are read, evenly spread over the cases


def class_shares(cases: nnUNetBaseDataset, labels: LabelManager) -> dict[str, float]:
    """Share of the voxels of the preprocessed ``cases`` by name of class or region, in the order of the outputs.

    Empty if there is an ignore label: the annotated voxels of a volume are no sample of it.
    """
    if labels.has_ignore_label:
        return {}
    values = output_values(labels)
    names = cases.identifiers[:: -(-len(cases.identifiers) // MOST_CASES)]
    counted = np.array([_counts(np.asarray(cases.load_case(name)[1][:]), values) for name in names])
    voxels, total = counted[:, :-1].sum(axis=0), counted[:, -1].sum()
    return dict(zip(values, (voxels / total).tolist(), strict=True))


def output_values(labels: LabelManager) -> dict[str, tuple[int, ...]]:
    """Label values of each foreground class or region by name, in the order of the network's outputs."""
    given = {name: tuple(np.atleast_1d(values).tolist()) for name, values in labels.label_dict.items()}
    foreground = {name: values for name, values in given.items() if values != (0,) and name != "ignore"}
    return foreground if labels.has_regions else dict(sorted(foreground.items(), key=lambda item: item[1]))


def _counts(segmentation: np.ndarray, values: dict[str, tuple[int, ...]]) -> list[int]:
    """Voxels of each of ``values``, and all voxels."""
    return [*(int(np.isin(segmentation, each).sum()) for each in values.values()), segmentation.size]
