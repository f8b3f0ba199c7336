"""Two processes with gloo end with equal weights, and with those of one process on the joined batch."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TinyDataset
from trainers import make_trainer

from nnunetv2_crossmatch.learning.perturbation import Perturbation
from nnunetv2_crossmatch.learning.step import Step
from nnunetv2_crossmatch.learning.streams import StreamTable
from nnunetv2_crossmatch.training.distributed import share

NAME = "nnUNetTrainerCrossMatch_2epochs_iters2_valiters1_seed1_warmup0_tau0p5_cutmix0_batch4"
NAMES = [f"{NAME}_exec{way}_criterion{loss}" for way in ("stacked", "sequential") for loss in ("dice", "dicece")]
NAMES.append(f"{NAME}_execstacked_students2")
STEPS, RANKS = 2, 2


def joined_batches() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(STEPS):
        target = (torch.rand(4, 1, 16, 16, generator=generator) > 0.5).to(torch.int16)
        images = torch.randn(4, 4, 1, 16, 16, generator=generator)
        batches.append({"data": images[:, 0], "target": [target, target[..., ::2, ::2]], "unlabeled": images[:, 1:]})
    return batches


def rows(value: Any, start: int, stop: int) -> Any:
    if isinstance(value, list):
        return [rows(each, start, stop) for each in value]
    if isinstance(value, Perturbation):
        return Perturbation(value.scale[start:stop], None)
    return value[start:stop]


def with_joined_draws(trainer: Any, start: int, stop: int) -> Any:
    """Let the trainer draw for the joined batch and take the rows of this process."""
    own_draw = trainer.method.draw

    def draw(step: Step, table: StreamTable) -> Any:
        images = {view: torch.zeros(4, *image.shape[1:]) for view, image in step.images.items()}
        boxes, drawn = own_draw(replace(step, rank=0, images=images), table)
        boxes = {view: [None] * (stop - start) for view in boxes}
        return boxes, {name: rows(levels, start, stop) for name, levels in drawn.items()}

    trainer.method.draw = draw
    return trainer


def train(tiny: TinyDataset, name: str, start: int, stop: int) -> torch.Tensor:
    trainer = make_trainer(tiny, name)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    with_joined_draws(trainer, start, stop)
    for batch in joined_batches():
        trainer.train_step({key: rows(value, start, stop) for key, value in batch.items()})
    assert trainer.unlabeled_batch_size == stop - start
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def work(rank: int, root: str, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    weights = {name: train(TinyDataset(Path(root)), name, 2 * rank, 2 * rank + 2) for name in NAMES}
    torch.save(weights, Path(root) / f"rank{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_train_like_one_on_the_joined_batch(tiny_copy):
    mp.spawn(work, args=(str(tiny_copy.root), free_port()), nprocs=RANKS)
    first, second = (torch.load(tiny_copy.root / f"rank{rank}.pt") for rank in range(RANKS))
    for name in NAMES:
        alone = train(tiny_copy, name, 0, 4)
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], alone, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(("total", "world"), [(4, 2), (5, 2), (7, 3), (2, 4)])
def test_shares_add_up_and_differ_by_at_most_one(total, world):
    shares = [share(total, rank, world) for rank in range(world)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
