"""Two processes with gloo: the weights of one on the joined batch, one seed, and draws of their own."""

from __future__ import annotations

import shutil
import socket
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TinyDataset
from joined import RANKS, halves, joined_draws, joined_trainer
from toy_methods import with_toys
from trainers import continued, flat, make_trainer, started, weights_of

from nnunetv2_crossmatch.learning.labeling import Labeling
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import StreamTable
from nnunetv2_crossmatch.methods import names
from nnunetv2_crossmatch.methods.filtermatch import FilterMatch
from nnunetv2_crossmatch.training.distributed import (
    device_of_process,
    join_torchrun,
    samples_per_process,
    wait_for_first_process,
)

SHORT = "nnUNetTrainerCrossMatch_2epochs_iters2_valiters1"
# With tau 0.5 and two classes every voxel counts, in each process as many: sums that are not exchanged would not show.
NAMES = [
    f"{SHORT}_seed1_warmup0_batch4_{tokens}"
    for tokens in (
        "tau0p5_execstacked",
        "tau0p5_execsequential_criteriondicece",
        "tau0p85_execstacked_criteriondicece",
        "tau0p85_execsequential",
        "tau0p85_execstacked_students2",
    )
]
JOINT = "nnUNetTrainerFilterMatch_2epochs_iters2_valiters1_seed1_batch4_labeledonly0"
DRAWN = f"{SHORT}_warmup0_batch4_ubatch5"  # without a seed in its name
TWO_NETWORKS = "nnUNetTrainerTwoNetworks_2epochs_iters2_valiters1_seed1_warmup0_batch4"
CONSISTENT = [
    f"nnUNetTrainer{method}_2epochs_iters2_valiters1_seed1_warmup0_unsup10_batch4{tokens}"
    for method, tokens in {
        **dict.fromkeys(("MeanTeacher", "CPS", "DMD", "URPC", "MCNet", "DTC", "SASSNet", "SSNet"), ""),
        "MCNetPlus": "_temp0p5",  # 0.1 makes rounding errors ten times as large
        "UAMT": "_samples2",
        "BCP": "_pretrain0",
    }.items()
]
OWN_DRAWS = "nnUNetTrainerCAML_2epochs_iters2_valiters1_seed1_warmup0_unsup10_batch4"  # and images that it attends to
STEPS = 2


def joined_batches(views: int = 3) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(STEPS):
        target = (torch.rand(4, 1, 16, 16, generator=generator) > 0.5).to(torch.int16)
        images = torch.randn(4, 4, 1, 16, 16, generator=generator)
        unlabeled = images[:, 1 : 1 + views]
        batches.append({"data": images[:, 0], "target": [target, target[..., ::2, ::2]], "unlabeled": unlabeled})
    return batches


def train(tiny: TinyDataset, name: str, rank: int) -> dict[str, Any]:
    """A process's share of the training on :func:`joined_batches`."""
    trainer = make_trainer(tiny, name)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    steps = [trainer.train_step(halves(batch)[rank]) for batch in joined_batches(len(trainer.unlabeled_views))]
    assert trainer.unlabeled_batch_size == 2
    return {"weights": weights_of(trainer), "confident": [float(step.get("confident_share", "nan")) for step in steps]}


def train_peer(tiny: TinyDataset, rank: int) -> torch.Tensor:
    """Weights of the second network after a process's share of the training."""
    names.METHODS = with_toys()
    trainer = make_trainer(tiny, TWO_NETWORKS)
    trainer.initialize()
    for batch in (halves(joined)[rank] for joined in joined_batches()):
        trainer.train_step({**batch, "unlabeled": batch["unlabeled"][:, :1]})
    return torch.cat([p.detach().flatten() for p in trainer.method.peer.parameters()])


def train_consistent(trainer: Any, batches: list[dict]) -> torch.Tensor:
    """Weights of the network and the method's modules after steps on ``batches``."""
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    for batch in batches:
        trainer.train_step({**batch, "unlabeled": batch["unlabeled"][:, :1]})
    own = [flat(trainer.method)] if trainer.method.state_dict() else []
    return torch.cat([weights_of(trainer), *own])


def take_step(tiny: TinyDataset, rank: int) -> dict[str, Any]:
    """What a process loads, draws and logs in a step; the second one has too little memory for stacked streams."""
    trainer, seen = started(tiny, DRAWN), {}
    if rank == 1:
        trainer.local_loss = lambda: exhausted
    draw = trainer.method.draw

    def remember(step: Step, table: StreamTable) -> Any:
        """Two samples in both processes: draws for other numbers of them would differ anyway."""
        first_two = replace(step, images={view: image[:2] for view, image in step.images.items()})
        seen["boxes"], seen["perturbations"] = draw(first_two, table)
        return draw(step, table)

    trainer.method.draw = remember
    batches = [next(trainer.dataloader_train) for _ in range(8)]
    batch = batches[0]
    step = trainer.train_step(batch)
    trainer.on_train_epoch_end([step])
    logged = trainer.logger.local_logger.my_fantastic_logging
    return {
        "seed": trainer.seed,
        "seed when continued": seed_when_continued(tiny, trainer),
        "batch sizes": [len(batch["data"]), len(batch["unlabeled"])],
        "cases": [[str(case) for case in batch["keys"]] for batch in batches],
        "boxes": str(seen["boxes"]),
        "perturbation": str([level.scale.flatten().tolist() for level in seen["perturbations"]["ws"]]),
        "stacked": trainer.method.stacked,
        "loss_sup": float(step["loss_sup"]),
        "logged loss_sup": logged["loss_sup"][0],
    }


def exhausted(*arguments: object) -> None:
    raise torch.cuda.OutOfMemoryError


def seed_when_continued(tiny: TinyDataset, trainer: Any) -> int:
    trainer.save_latest()
    if trainer.lock is not None:
        trainer.lock.release()
    dist.barrier()
    return continued(tiny, DRAWN).seed


def work(rank: int, root: str, port: int) -> None:
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    tiny = TinyDataset(Path(root))
    result = {name: train(tiny, name, rank) for name in (*NAMES, JOINT)} | {"step": take_step(tiny, rank)}
    result["peer"] = train_peer(tiny, rank)
    for name in (*CONSISTENT, OWN_DRAWS):
        batches = [halves(batch)[rank] for batch in joined_batches()]
        result[name] = train_consistent(make_trainer(tiny, name), batches)
    result["labeling"] = follow([rank])
    result["entropies"] = follow_entropies([rank])
    result["waited"] = wait_for_a_slow_first(rank, tiny.root / "done")
    torch.save(result, tiny.root / f"rank{rank}.pt")
    dist.destroy_process_group()


def follow(halves: list[int]) -> dict[str, torch.Tensor]:
    """Thresholds and shifts after the labels of those halves of a batch."""
    labeling = Labeling(3, regions=False, keep=0.3, align=True)
    torch.manual_seed(0)
    probability = torch.softmax(3 * torch.randn(4, 3, 6, 6) + torch.tensor([0.0, 6.0, 3.0]).view(3, 1, 1), 1)
    for _ in range(30):
        label = labeling(torch.cat([probability[2 * half : 2 * half + 2] for half in halves]), 0.5)
        labeling.update(label, {"blob": 0.05, "other": 0.9})
    return labeling.state_dict()


def follow_entropies(halves: list[int]) -> torch.Tensor:
    """Entropies by case after a step on those halves of a batch; one case is in both."""
    method = FilterMatch(FilterMatch.Settings(), Task(2))
    method.drawn_cases(["a", "b", "c"], 0.0)
    values = {"a": [0.25], "b": [0.5, 2.0], "c": [1.0]}
    crops = [("a", 0), ("b", 0)], [("b", 1), ("c", 0)]
    chosen = [crop for half in halves for crop in crops[half]]
    method.entropies = torch.tensor([values[case][number] for case, number in chosen])
    method.after_step(Step(None, {}, None, method.task, None, cases=[case for case, _ in chosen]))
    return method.seen


def wait_for_a_slow_first(rank: int, done: Path) -> bool:
    """Whether the work of the first process is there after waiting for it."""
    if rank == 0:
        time.sleep(0.5)
        done.touch()
    wait_for_first_process()
    return done.exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def processes(tiny_prepared: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes that worked together came to."""
    tiny = TinyDataset(tmp_path_factory.mktemp("processes") / "tiny")
    shutil.copytree(tiny_prepared.root, tiny.root)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny.variables.items():
            patch.setenv(name, value)
        mp.spawn(work, args=(str(tiny.root), free_port()), nprocs=RANKS)
    return [torch.load(tiny.root / f"rank{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", [*NAMES, JOINT], ids=lambda name: name.partition("batch4_")[2])
def test_two_processes_train_like_one_on_the_joined_batch(processes, tiny_copy, monkeypatch, name):
    """Each with boxes and feature perturbations of its own; CutMix stays inside a process."""
    first, second = (process[name] for process in processes)
    alone = joined_trainer(tiny_copy, name, monkeypatch)
    for batch in joined_batches(len(alone.unlabeled_views)):
        alone.train_step(batch)
    assert torch.equal(first["weights"], second["weights"])
    assert torch.allclose(first["weights"], weights_of(alone), rtol=1e-4, atol=1e-5)
    if "tau0p85" in name:
        assert first["confident"] != second["confident"]
        assert all(0 < confident < 1 for confident in first["confident"])


@pytest.mark.parametrize("name", CONSISTENT, ids=lambda name: name.split("_")[0])
def test_consistency_methods_train_like_one_process_on_the_joined_batch(processes, tiny_copy, name):
    first, second = (process[name] for process in processes)
    alone = make_trainer(tiny_copy, name)
    joined_draws(alone)
    assert torch.equal(first, second)
    assert torch.allclose(first, train_consistent(alone, joined_batches()), rtol=1e-4, atol=1e-5)


def test_networks_and_bank_are_the_same_in_both_processes(processes):
    first, second = (process[OWN_DRAWS] for process in processes)
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_the_peer_of_the_network_is_the_same_in_both_processes(processes):
    first, second = (process["peer"] for process in processes)
    assert torch.equal(first, second)


@pytest.mark.parametrize("state", ["log_odds", "amount", "shift"])
def test_thresholds_and_shifts_follow_the_labels_of_both_processes(processes, state):
    first, second = (process["labeling"][state] for process in processes)
    assert torch.equal(first, second)
    assert torch.allclose(first, follow([0, 1])[state])


def test_entropies_of_cases_are_those_of_both_processes(processes):
    both = follow_entropies([0, 1])
    assert both.tolist() == [[0.25, 2.5, 1.0], [1, 2, 1]]
    assert all(torch.equal(process["entropies"], both) for process in processes)


@pytest.mark.parametrize("what", ["seed", "seed when continued"])
def test_a_seed_that_was_drawn_is_the_first_process_s_everywhere(processes, what):
    first, second = (process["step"][what] for process in processes)
    assert first == second == processes[0]["step"]["seed"]


@pytest.mark.parametrize("what", ["cases", "boxes", "perturbation"])
def test_processes_with_one_seed_draw_different(processes, what):
    """Cases are what a loader draws first; crops of different places differ even where the loaders' seeds are equal."""
    first, second = (process["step"][what] for process in processes)
    assert first != second


def test_batch_sizes_are_totals_of_all_processes(processes):
    assert [process["step"]["batch sizes"] for process in processes] == [[2, 3], [2, 2]]


def test_processes_stack_the_streams_only_if_the_memory_of_all_suffices(processes):
    assert [process["step"]["stacked"] for process in processes] == [False, False]


def test_processes_wait_until_the_first_has_prepared_the_unlabeled_cases(processes):
    assert all(process["waited"] for process in processes)


def test_a_process_of_another_node_takes_the_gpu_of_its_local_rank(monkeypatch):
    """The twelfth process of all, the fourth of its node, as torchrun says."""
    joined, chosen = [], []
    for name, value in {"LOCAL_RANK": "3", "RANK": "11", "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", joined.append)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    join_torchrun(torch.device("cuda"))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 11)
    assert (joined, chosen) == (["nccl"], [3])
    assert device_of_process(torch.device("cuda", 11)) == torch.device("cuda", 3)


def test_curves_are_means_over_the_processes(processes):
    logged = [process["step"]["logged loss_sup"] for process in processes]
    own = [process["step"]["loss_sup"] for process in processes]
    assert own[0] != own[1]
    assert logged == pytest.approx([sum(own) / RANKS] * RANKS)


@pytest.mark.parametrize(("total", "world"), [(4, 2), (5, 2), (7, 3), (2, 4)])
def test_shares_add_up_and_differ_by_at_most_one(total, world):
    shares = [samples_per_process(total, rank, world) for rank in range(world)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
