"""Dataset class for labeled cases that an older nnU-Net preprocessed: npz files, extracted to memory-mapped npy files.

nnU-Net maps them read-only and passes crops of the map to its augmentation. A crop without padding is a view of the
map, and an in-place transform (noise, contrast) then ends the process with a segmentation fault. Limit: changes the
mode of the map only.
"""

from __future__ import annotations

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetNumpy


class WritableNpzDataset(nnUNetDatasetNumpy):
    """nnU-Net's class with copy-on-write maps: changes stay in memory and never reach the file."""

    def load_case(self, identifier: str) -> tuple:
        """(data, segmentation, segmentation of the previous stage or None, properties), the arrays writable."""
        *arrays, properties = super().load_case(identifier)
        return (*map(_copy_on_write, arrays), properties)


def _copy_on_write(array: np.ndarray | None) -> np.ndarray | None:
    return np.load(str(array.filename), mmap_mode="c") if isinstance(array, np.memmap) else array


def writable_dataset_class(kind: type[nnUNetBaseDataset]) -> type[nnUNetBaseDataset]:
    """Dataset class with writable arrays in place of nnU-Net's choice ``kind``."""
    return WritableNpzDataset if kind is nnUNetDatasetNumpy else kind
