"""Labeled and unlabeled batches together, drawn as a function of seed and step alone.

Every batch seeds numpy and torch from (seed, rank, stream, index of the batch): no two workers, loaders or steps share
draws, and a run repeats itself with any number of workers, resumed or not. Limit: crops and augmentation are the
host's loader and transforms; nothing here looks at an image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from unittest.mock import patch

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_crossmatch.data.workers import follow_parent

QUIET = 0.1  # seconds without a batch after which workers that were told to pause have none on the way


class BatchLoader:
    """Infinite loader of host batches, joined by ``unlabeled`` views (U, 3, C, S) if there is a loader for them.

    Where the views are made later there is one: the moved crop.

    Batchgenerators' augmenters run it in the main process or copy it into workers, which then take turns.

    Args:
        labeled: the host's loader.
        unlabeled: the host's loader on unlabeled cases, with ``views.Views`` as transforms.
        seed: entropy of all draws, e.g. (seed, rank, stream).
        first: index of the first batch.
        workers: how many copies take turns.
        with_segmentation: add ``unlabeled_segmentation`` (U, 1, S), which came with the views.
    """

    def __init__(
        self,
        labeled: nnUNetDataLoader,
        unlabeled: nnUNetDataLoader | None,
        seed: tuple[int, ...],
        first: int = 0,
        workers: int = 1,
        with_segmentation: bool = False,
    ) -> None:
        self.labeled, self.unlabeled = labeled, unlabeled
        self.seed, self.index, self.workers, self.with_segmentation = seed, first, workers, with_segmentation

    def set_thread_id(self, worker: int) -> None:
        """Called by the augmenter in each worker: start at the worker's own batch."""
        torch.set_num_threads(1)
        follow_parent()
        self.index += worker

    def __next__(self) -> dict:
        seed_everything((*self.seed, self.index))
        self.index += self.workers
        batch = next(self.labeled)
        if self.unlabeled is not None:
            views = next(self.unlabeled)
            batch["unlabeled"] = views["data"].unflatten(1, (-1, batch["data"].shape[1]))
            if self.with_segmentation:
                batch["unlabeled_segmentation"] = views["target"]
        return batch


class BatchWorkers(MultiThreadedAugmenter):
    """Batchgenerators' worker processes, brought to rest before they end.

    A worker hands its tensors over in person. If it ended with a batch on the way, the thread that fetches it would
    die with a traceback at the end of every other training.
    """

    def _finish(self, timeout: float = 10, force: bool = False) -> None:
        if self.pin_memory_queue is not None:
            self.pause_event.set()
            while self._something_arrives():
                pass
        super()._finish(timeout, force)

    def _something_arrives(self) -> bool:
        try:
            self.pin_memory_queue.get(timeout=QUIET)
        except Empty:
            return False
        return True


def seed_everything(entropy: tuple[int, ...]) -> None:
    """Seed the global generators of numpy and torch, which the host's loaders and transforms draw from."""
    state = np.random.SeedSequence(entropy).generate_state(2)
    np.random.seed(state[0])
    torch.manual_seed(int(state[1]))


def augmenter(
    loader: nnUNetDataLoader,
    unlabeled: nnUNetDataLoader | None,
    seed: tuple[int, ...],
    first: int,
    workers: int,
    pin_memory: bool,
    with_segmentation: bool = False,
) -> BatchWorkers | SingleThreadedAugmenter:
    """The loaders behind ``workers`` processes (0: this one), in the order of their batches."""
    batches = BatchLoader(loader, unlabeled, seed, first, max(workers, 1), with_segmentation)
    if workers == 0:
        return SingleThreadedAugmenter(batches, None)
    running = BatchWorkers(batches, None, workers, num_cached_per_queue=2, pin_memory=pin_memory, wait_time=0.002)
    running._start()
    return running


@contextmanager
def host_in_this_process() -> Iterator[int]:
    """Let the host build its loaders without workers; yields the number of workers that it would have started.

    The host has no hook between its loaders and its augmenters, but honours ``nnUNet_n_proc_DA``.
    """
    workers = get_allowed_n_proc_DA()
    with patch.dict(os.environ, {"nnUNet_n_proc_DA": "0"}):
        yield workers
