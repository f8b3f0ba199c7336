"""Batches depend on seed and step only, not on the number of workers or a resume; no two share random numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from trainers import started

from nnunetv2_crossmatch.data.loader import (
    READY_BYTES,
    bytes_of_batch,
    make_augmenter,
    ready_per_worker,
    seed_everything,
)
from nnunetv2_crossmatch.learning import shapes
from nnunetv2_crossmatch.learning.shapes import signed_distances


class RandomLoader:
    """Replacement of nnU-Net's loader: a batch contains random numbers of numpy and torch."""

    def __init__(self, views: bool) -> None:
        self.views = views

    def __next__(self) -> dict:
        drawn = torch.cat([torch.from_numpy(np.random.rand(3)), torch.rand(3, dtype=torch.float64)])
        return {"data": drawn.repeat(2, 3 if self.views else 1, 1), "target": drawn, "keys": [0, 1]}


def batches(workers: int, count: int = 6, seed: tuple[int, ...] = (1, 0, 0), first: int = 0) -> list[dict]:
    loader = make_augmenter(RandomLoader(False), RandomLoader(True), seed, first, workers, pin_memory=False)
    try:
        return [{name: torch.as_tensor(value).clone() for name, value in next(loader).items()} for _ in range(count)]
    finally:
        if workers:
            loader._finish()


def same(a: list[dict], b: list[dict]) -> bool:
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    assert same(batches(workers), batches(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_continues_where_it_was(workers):
    assert same(batches(workers, count=3, first=3), batches(0)[3:])


def test_no_two_batches_loaders_or_ranks_share_random_numbers():
    seeds = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    drawn = [batch for seed in seeds for batch in batches(2, count=10, seed=seed)]
    values = [v for batch in drawn for v in (*batch["data"][0, 0].tolist(), *batch["unlabeled"][0, 0, 0].tolist())]
    assert len(set(values)) == len(values)


def test_what_workers_keep_ready_is_bounded_in_bytes():
    """At 128^3 with 12 workers one batch each, as two would be 1.8 GB; small batches stay two."""
    large = bytes_of_batch(2, 2, 3, 1, (128, 128, 128))
    assert large == 128**3 * (2 * 4 + 2 * 3 * 4 + 2 * 3) == 79691776
    assert ready_per_worker(large, 12) == 1
    assert ready_per_worker(large, 4) == 2
    assert ready_per_worker(READY_BYTES, 1) == 1
    assert ready_per_worker(bytes_of_batch(12, 12, 3, 1, (256, 256)), 12) == 2


def test_the_size_of_a_batch_is_that_of_its_tensors(prepared_copy):
    trainer = started(prepared_copy, "nnUNetTrainerCrossMatch_batch3_ubatch5")
    batch = next(trainer.dataloader_train)
    tensors = [batch["data"], batch["unlabeled"], *batch["target"]]
    exact = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert exact <= trainer._bytes_of_batch(5) < 1.1 * exact


def test_distance_maps_of_labels_come_with_the_batch(prepared_copy, monkeypatch):
    trainer = started(prepared_copy, "nnUNetTrainerDTC_2epochs_iters4_valiters1_labeledonly0p25")
    batches = [next(trainer.dataloader_train) for _ in range(3)]
    assert (
        ["of_labels" in batch for batch in batches]
        == ["unlabeled" in batch for batch in batches]
        == [False, False, True]
    )
    batch, spacing = batches[2], tuple(trainer.configuration_manager.spacing)
    assert torch.equal(batch["of_labels"], signed_distances(batch["target"], 2, False, spacing))
    assert batch["of_labels"].shape == (2, 1, 16, 16)
    with_maps, without = (trainer._bytes_of_batch(2, maps) for maps in (1, 0))
    assert with_maps - without == batch["of_labels"].numel() * 4
    monkeypatch.setattr(shapes, "distance_maps", None)
    trainer.train_step(batch)


def test_views_have_their_own_axis():
    batch = batches(0, count=1)[0]
    assert batch["unlabeled"].shape == (2, 3, 1, 6)


def test_seeding_reaches_numpy_and_torch():
    states = []
    for entropy in ((0, 1), (0, 1), (1, 0)):
        seed_everything(entropy)
        states.append((np.random.rand(), torch.rand(1).item()))
    assert states[0] == states[1]
    assert all(a != b for a, b in itertools.product(states[0], states[2]))
