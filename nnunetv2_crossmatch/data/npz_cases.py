"""Labeled cases that an older nnU-Net preprocessed: npz files, unpacked to npy and mapped into memory.

The host maps them for reading and hands crops of the map to its augmentation. One that needs no padding is a view of
the file, and the first change in place (noise, contrast) kills the process with a segmentation fault. Limit: the
mapping only; what the files hold and where they lie is the host's business.
"""

from __future__ import annotations

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetNumpy


class NpzCases(nnUNetDatasetNumpy):
    """The host's class, mapped copy-on-write: changes stay in this process and never reach the file."""

    def load_case(self, identifier: str) -> tuple:
        """(data, segmentation, segmentation of the previous stage or None, properties), the arrays writable."""
        *arrays, properties = super().load_case(identifier)
        return (*map(_writable, arrays), properties)


def _writable(array: np.ndarray | None) -> np.ndarray | None:
    return np.load(str(array.filename), mmap_mode="c") if isinstance(array, np.memmap) else array


def safe_to_augment(kind: type[nnUNetBaseDataset]) -> type[nnUNetBaseDataset]:
    """The class to load cases with in place of the host's choice ``kind``."""
    return NpzCases if kind is nnUNetDatasetNumpy else kind
