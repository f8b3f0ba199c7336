"""Loader of joint batches of labeled and unlabeled cases, reproducible from seed and step.

Before each batch numpy and torch are seeded from (seed, rank, stream, index of the batch): no two workers, loaders or
steps share random numbers, and a run is reproducible with any number of workers, resumed or not. Limit: cropping and
augmentation are done by nnU-Net's loader and transforms.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_crossmatch.data.workers import exit_with_parent

READY_BYTES = 2**30
"""Of batches that workers keep ready in shared memory; one for each worker in any case."""
READY_PER_WORKER = 2
PAUSE_SECONDS = 0.1  # without a batch for so long, paused workers have no batch in transfer


class BatchLoader:
    """Infinite loader of nnU-Net's batches, with ``unlabeled`` views (U, 3, C, S) if there is an unlabeled loader.

    ``unlabeled_keys`` are the names of their cases.

    The views axis has length 1 if the views are made on the device: it holds the geometrically augmented crop.
    Batchgenerators' augmenters run this loader in the main process, or copies of it in workers, which alternate.

    Args:
        labeled: nnU-Net's loader.
        unlabeled: nnU-Net's loader of unlabeled cases, with ``views.WeakStrongViews`` as transforms.
        seed: seed of all random numbers, e.g. (seed, rank, stream).
        first_index: index of the first batch.
        workers: number of copies.
        with_segmentation: add ``unlabeled_segmentation`` (U, 1, S), augmented like its views.
        first_unlabeled: index of the first batch with unlabeled views.
        of_labels: makes the entry ``of_labels`` (B, K, S) of a batch's target, where there are unlabeled views.
    """

    def __init__(
        self,
        labeled: nnUNetDataLoader,
        unlabeled: nnUNetDataLoader | None,
        seed: tuple[int, ...],
        first_index: int = 0,
        workers: int = 1,
        with_segmentation: bool = False,
        first_unlabeled: int = 0,
        of_labels: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        self.of_labels = of_labels
        self.labeled, self.unlabeled, self.first_unlabeled = labeled, unlabeled, first_unlabeled
        self.seed, self.index, self.workers, self.with_segmentation = seed, first_index, workers, with_segmentation

    def set_thread_id(self, worker: int) -> None:
        """Start at the first batch of this worker; called by the augmenter in each worker."""
        torch.set_num_threads(1)
        exit_with_parent()
        self.index += worker

    def __next__(self) -> dict:
        seed_everything((*self.seed, self.index))
        index, self.index = self.index, self.index + self.workers
        batch = next(self.labeled)
        if self.unlabeled is not None and index >= self.first_unlabeled:
            views = next(self.unlabeled)
            batch["unlabeled"] = views["data"].unflatten(1, (-1, batch["data"].shape[1]))
            batch["unlabeled_keys"] = views["keys"]
            if self.of_labels is not None:
                batch["of_labels"] = self.of_labels(batch["target"])
            if self.with_segmentation:
                batch["unlabeled_segmentation"] = views["target"]
        return batch


class DrainingAugmenter(MultiThreadedAugmenter):
    """Batchgenerators' augmenter that empties the queues of its workers before it ends them.

    A worker process must be alive while its tensors are transferred. If it ended earlier, the thread that fetches the
    batch would print a traceback at the end of about every second training.
    """

    def _finish(self, timeout: float = 10, force: bool = False) -> None:
        if self.pin_memory_queue is not None:
            self.pause_event.set()
            while self._take_batch():
                pass
        super()._finish(timeout, force)

    def _take_batch(self) -> bool:
        try:
            self.pin_memory_queue.get(timeout=PAUSE_SECONDS)
        except Empty:
            return False
        return True


def seed_everything(entropy: tuple[int, ...]) -> None:
    """Seed the global generators of numpy and torch, which nnU-Net's loaders and transforms use."""
    state = np.random.SeedSequence(entropy).generate_state(2)
    np.random.seed(state[0])
    torch.manual_seed(int(state[1]))


def bytes_of_batch(
    labeled: int, unlabeled: int, views: int, channels: int, patch_size: Sequence[int], maps: int = 0
) -> int:
    """Bytes of a joint batch: images and views in float32, targets in int16, with the lower resolutions' ones.

    Args:
        labeled: samples.
        unlabeled: samples, 0 in a supervised training.
        views: of each unlabeled one.
        channels: of an image.
        patch_size: voxels by axis.
        maps: that are made of each labeled sample's target, in float32.
    """
    voxels, targets = math.prod(patch_size), 1.5  # all lower resolutions together are at most half of the full one
    return int(voxels * (4 * channels * (labeled + unlabeled * views) + (2 * targets + 4 * maps) * labeled))


def ready_per_worker(batch: int, workers: int) -> int:
    """Batches of so many bytes that each worker keeps ready: two, or one where all together exceed READY_BYTES."""
    return READY_PER_WORKER if READY_PER_WORKER * workers * batch <= READY_BYTES else 1


def shared_memory_needed(batch: int, workers: int) -> int:
    """Bytes of shared memory for a loader: what is ready, and a batch of each worker that is being handed over."""
    return batch * workers * (ready_per_worker(batch, workers) + 1)


def make_augmenter(
    loader: nnUNetDataLoader,
    unlabeled: nnUNetDataLoader | None,
    seed: tuple[int, ...],
    first_index: int,
    workers: int,
    pin_memory: bool,
    with_segmentation: bool = False,
    first_unlabeled: int = 0,
    batch_bytes: int = 0,
    of_labels: Callable[[Any], torch.Tensor] | None = None,
) -> DrainingAugmenter | SingleThreadedAugmenter:
    """Augmenter that runs the loaders in ``workers`` processes (0: in this one) and returns the batches in order.

    What they keep ready follows from ``batch_bytes``.
    """
    batches = BatchLoader(
        loader, unlabeled, seed, first_index, max(workers, 1), with_segmentation, first_unlabeled, of_labels
    )
    if workers == 0:
        return SingleThreadedAugmenter(batches, None)
    workers_augmenter = DrainingAugmenter(
        batches,
        None,
        workers,
        num_cached_per_queue=ready_per_worker(batch_bytes, workers),
        pin_memory=pin_memory,
        wait_time=0.002,
    )
    workers_augmenter._start()
    return workers_augmenter


@contextmanager
def nnunet_loaders_without_workers() -> Iterator[int]:
    """Let nnU-Net build its loaders without workers; yield the number of workers that it would have started.

    nnU-Net has no hook between its loaders and its augmenters, but reads ``nnUNet_n_proc_DA``.
    """
    workers = get_allowed_n_proc_DA()
    with patch.dict(os.environ, {"nnUNet_n_proc_DA": "0"}):
        yield workers
