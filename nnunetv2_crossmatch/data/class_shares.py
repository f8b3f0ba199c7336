"""Which part of the labeled volumes each class or region takes, as they are.

The loader shows the network more foreground than there is; what pseudo-labels of uniformly drawn crops are compared
with is the share in whole volumes. Limit: partly annotated volumes tell no share.
"""

from __future__ import annotations

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_crossmatch.errors import InputError, Problem

MOST_CASES = 25  # volumes that are read, evenly spread over the cases


def class_shares(cases: nnUNetBaseDataset, labels: LabelManager) -> dict[str, float]:
    """Share of the voxels of the preprocessed ``cases`` by name of class or region, in the order of the outputs.

    Empty if there is an ignore label: the annotated voxels of a volume are no sample of it.

    Raises:
        InputError: a volume that is read has a label that ``dataset.json`` does not name.
    """
    if labels.has_ignore_label:
        return {}
    values = output_values(labels)
    names = cases.identifiers[:: -(-len(cases.identifiers) // MOST_CASES)]
    segmentations = ((name, np.asarray(cases.load_case(name)[1][:])) for name in names)
    counted = np.array([_counts(_with_known_labels(labels, *one), values) for one in segmentations])
    voxels, total = counted[:, :-1].sum(axis=0), counted[:, -1].sum()
    return dict(zip(values, (voxels / total).tolist(), strict=True))


def _with_known_labels(labels: LabelManager, name: str, segmentation: np.ndarray) -> np.ndarray:
    """``segmentation`` if all of its labels have an output: of others the loss fails, on a GPU without a word why."""
    unknown = np.setdiff1d(segmentation, [-1, *labels.all_labels])  # -1: outside of the nonzero region
    if unknown.size:
        detail = f"{', '.join(f'{value:g}' for value in unknown[:5])}; known: {', '.join(map(str, labels.all_labels))}"
        fix = "mend the label, or add it to dataset.json, then plan and preprocess again"
        raise InputError(Problem("label not in dataset.json", name, detail, fix))
    return segmentation


def output_values(labels: LabelManager) -> dict[str, tuple[int, ...]]:
    """Label values of each foreground class or region by name, in the order of the network's outputs."""
    given = {name: tuple(np.atleast_1d(values).tolist()) for name, values in labels.label_dict.items()}
    foreground = {name: values for name, values in given.items() if values != (0,) and name != "ignore"}
    return foreground if labels.has_regions else dict(sorted(foreground.items(), key=lambda item: item[1]))


def _counts(segmentation: np.ndarray, values: dict[str, tuple[int, ...]]) -> list[int]:
    """Voxels of each of ``values``, and all voxels."""
    return [*(int(np.isin(segmentation, each).sum()) for each in values.values()), segmentation.size]
