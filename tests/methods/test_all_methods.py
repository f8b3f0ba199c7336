"""What holds for every method: trainers found by name train, go on where they stopped and leave a stock network."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import pytest
import torch
from conftest import TinyDataset
from small import PATCH, host_network
from trainers import flat, make_trainer, resumed, started, steps
from waits import made_without_device, noticed_waits

from nnunetv2_crossmatch.cli import trainers
from nnunetv2_crossmatch.errors import UnsupportedError
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.methods.consistency import ConsistencyMethod
from nnunetv2_crossmatch.methods.names import METHODS, settings_from_name

LENGTH = "2epochs_iters3_valiters1_seed1"
TOKENS = {"UAMT": "_samples2", "CrossMatch": "_execstacked", "FixMatch": "_execstacked", "UniMatch": "_execstacked"}
NEW = [method.__name__ for method in METHODS if issubclass(method, ConsistencyMethod)]
TRAINED = ["FilterMatch", *NEW]  # the others are trained in files of their own
LABELS: dict[str, dict] = {
    "classes": {"labels": {"background": 0, "blob": 1, "other": 2, "ignore": 3}},
    "regions": {
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "regions_class_order": [1, 2],
    },
}


def name_of(method: str) -> str:
    return f"nnUNetTrainer{method}_{LENGTH}{TOKENS.get(method, '')}"


@pytest.mark.parametrize("method", TRAINED)
def test_a_run_continues_to_the_bit_and_leaves_a_stock_network(prepared_copy, method):
    whole = started(prepared_copy, name_of(method))
    steps(whole, 1)
    whole.save_latest()
    saved = torch.load(whole.folder / "checkpoint_latest.pth", weights_only=False)
    decided = whole.method.decisions()
    reports = steps(whole, 2)
    assert all(math.isfinite(float(value)) for report in reports for value in report.values())
    again = resumed(prepared_copy, name_of(method))
    assert again.method.decisions() == decided
    steps(again, 2)
    assert torch.equal(flat(whole.network), flat(again.network))
    assert again.method.decisions() == whole.method.decisions()
    own = whole.method.state_dict()
    assert all(torch.equal(value, again.method.state_dict()[name]) for name, value in own.items())
    assert saved.get("method_state", {"modules": {}})["modules"].keys() == own.keys()
    stock = make_trainer(prepared_copy, "nnUNetTrainer")
    stock.initialize()
    stock.network.load_state_dict(saved["network_weights"], strict=True)


def batch_with_ignored_half(kind: str) -> dict[str, Any]:
    """Labels at both scales; the upper half of every image is ignored."""
    generator = torch.Generator().manual_seed(0)
    if kind == "regions":
        target = torch.randint(0, 2, (2, 3, 16, 16), generator=generator, dtype=torch.int16)
        target[:, 2] = 0
        target[:, 2, :8] = 1
    else:
        target = torch.randint(0, 3, (2, 1, 16, 16), generator=generator, dtype=torch.int16)
        target[:, :, :8] = 3
    images = torch.randn(2, 3, 1, 16, 16, generator=generator)
    return {"data": images[:, 0], "target": [target, target[..., ::2, ::2]], "unlabeled": images[:, 1:]}


def relabel(tiny: TinyDataset, kind: str) -> None:
    file = tiny.preprocessed / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | LABELS[kind]))


def first_loss(tiny: TinyDataset, method: str, batch: dict[str, Any]) -> tuple[dict[str, float], torch.Tensor]:
    """Report of the first step on ``batch``, and the weights after it."""
    second_stage = "_pretrain0" if method == "BCP" else ""
    trainer = make_trainer(tiny, f"{name_of(method)}_warmup0{second_stage}")
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    report = trainer.train_step(batch | {"unlabeled": batch["unlabeled"][:, : len(trainer.unlabeled_views)]})
    return {name: float(value) for name, value in report.items()}, flat(trainer.network)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("method", TRAINED)
def test_labels_of_ignored_voxels_change_nothing(prepared_copy, method, kind):
    relabel(prepared_copy, kind)
    batch, other = (batch_with_ignored_half(kind) for _ in range(2))
    if kind == "regions":
        for scale in other["target"]:
            scale[:, :2, : scale.shape[2] // 2] = 1
        for scale in batch["target"]:
            scale[:, :2, : scale.shape[2] // 2] = 0
    results = [first_loss(prepared_copy, method, each) for each in (batch, other)]
    assert results[0][0] == pytest.approx(results[1][0], nan_ok=True)
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][0].get("loss_sup", results[0][0]["loss"]) != 0
    assert math.isfinite(results[0][0]["loss"])


def made(method: str, task: Task, tokens: str = "", **options: Any) -> tuple[Any, Step]:
    """A method with its modules and a random step in float32."""
    torch.manual_seed(0)
    settings = settings_from_name(name_of(method) + tokens)
    made = next(each for each in METHODS if each.__name__ == method)(settings, task)

    def another() -> EncoderDecoder:
        return EncoderDecoder(host_network(task.dimensions, task.channels))

    network = another()
    made.build(network, another)
    made.start(network)
    shape = (2, 1, *PATCH[task.dimensions])
    images = {view: torch.randn(shape) for view in ("labeled", *made.unlabeled_views)}
    target = torch.randint(0, task.channels, shape)
    from_loader = made.of_labels()
    return made, Step(
        network, images, target, task, loss_of, head_loss=loss_of, progress=0.9, index=3, seed=1,
        of_labels=from_loader and from_loader(target), **options,
    )  # fmt: skip


def loss_of(output: Any, target: Any) -> torch.Tensor:
    heads = output if isinstance(output, list) else [output]
    return sum(head.float().square().mean() for head in heads)


def count_passes(modules: list[torch.nn.Module], rows: int) -> dict[str, float]:
    """Counts, as the modules run, of images through encoders and decoders per ``rows``, with gradient and without."""
    counts = dict.fromkeys(("encoder", "encoder_without", "decoder", "decoder_without"), 0.0)

    def count(kind: str, module: Any, inputs: Any) -> None:
        counts[kind if torch.is_grad_enabled() else f"{kind}_without"] += len(inputs[0]) / rows

    every = [each for module in modules for each in module.modules()]
    for encoder in [each.encoder for each in every if isinstance(each, EncoderDecoder)]:
        encoder.register_forward_pre_hook(partial(count, "encoder"))
    for decoder in [each for each in every if hasattr(each, "seg_layers")]:
        decoder.stages[-1].register_forward_pre_hook(partial(count, "decoder"))
    return counts


@pytest.mark.parametrize(
    ("method", "tokens"),
    [
        *((method.__name__, "") for method in METHODS),
        ("FixMatch", "_ema0p9"),
        ("FixMatch", "_mirrorteacher1"),
        ("FixMatch", "_ema0p9_mirrorteacher1"),
        ("CrossMatch", "_ema0p9_mirrorteacher1"),
    ],
)
def test_the_passes_are_those_that_the_list_tells(method, tokens):
    of_run, step = made(method, Task(2, dimensions=2, spacing=(1.0, 1.0)), tokens)
    counts = count_passes([step.network, of_run], 2)
    of_run.backward(step)
    assert counts == of_run.passes()._asdict()


PUBLISHED = {
    "CrossMatch": 6.36, "UniMatch": 4.24, "FilterMatch": 2.53, "MeanTeacher": 2.33, "CPS": 4.0, "DMD": 4.0, "UAMT": 5.0,
    "URPC": 2.0, "BCP": 1.33, "MCNet": 3.42, "MCNetPlus": 4.84, "DTC": 2.0, "SASSNet": 2.0, "SSNet": 6.0, "CAML": 4.0,
}  # fmt: skip


def test_costs_are_those_of_the_published_passes():
    costs = {each.__name__: each(each.Settings(), Task(2)).passes().cost for each in METHODS}
    assert {name: costs[name] for name in costs if name in PUBLISHED} == {
        name: pytest.approx(PUBLISHED[name], abs=0.01) for name in costs if name in PUBLISHED
    }


@pytest.mark.parametrize("method", TRAINED)
def test_half_precision_passes_leave_losses_in_full_precision(method):
    def losses(**precision: Any) -> dict[str, Any]:
        of_run, step = made(method, Task(3, dimensions=2, spacing=(1.0, 1.0)), cases=("a", "b"), **precision)
        of_run.drawn_cases(("a", "b"), 0.0)
        return of_run.backward(step)

    full, half = losses(), losses(autocast=partial(torch.autocast, "cpu", torch.bfloat16))
    name = "loss_unsup" if "loss_unsup" in full else "loss"  # of one batch there is one loss
    assert half[name].dtype == torch.float32
    assert float(half[name]) == pytest.approx(float(full[name]), rel=0.1)


@pytest.mark.parametrize("method", TRAINED)
def test_a_step_reads_nothing_back_from_the_device_and_makes_all_there(method):
    """BCP finds components on the CPU unless it is told not to."""
    task = Task(3, dimensions=2, spacing=(1.0, 1.0))
    of_run, step = made(method, task, "_largest0" if method == "BCP" else "", cases=("a", "b"))
    of_run.drawn_cases(("a", "b"), 0.0)
    with noticed_waits() as found, made_without_device() as elsewhere:
        of_run.backward(step)
        of_run.after_step(step)
    assert (found, elsewhere) == ([], [])


@pytest.mark.parametrize("method", NEW)
def test_tokens_of_strong_views_are_refused(tiny_copy, method):
    with pytest.raises(UnsupportedError, match=r"setting without effect.*has none\. Fix: leave it out"):
        make_trainer(tiny_copy, f"{name_of(method)}_viewsauthors")


def test_every_method_has_a_line_in_the_list(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nnUNetv2_crossmatch_trainers", "--list"])
    trainers.main.__wrapped__()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [method.Settings.trainer for method in METHODS]
    assert all(method.summary and method.summary in line for method, line in zip(METHODS, lines, strict=True))
    assert next(line for line in lines if "FixMatch" in line).split("  ")[3].startswith("[ACDC|recommended tau<x> ")
    assert next(line for line in lines if "FilterMatch" in line).split("  ")[3].startswith("[tau<x> ")
    (line,) = (line.split("  ") for line in lines if "CPS" in line)
    learned = "two networks learn from each other's hard labels"
    assert line == ["nnUNetTrainerCPS", "4.0x", learned, "[ACDC rampgaussian|linear]"]
