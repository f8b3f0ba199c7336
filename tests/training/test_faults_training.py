"""Faults 25 to 38, training: what is missing is told before it starts, and nothing that was learned is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import command_server
import drawn
import numpy as np
import pytest
import torch
from conftest import TinyDataset, blob_case, write_volume
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from random_loader import RandomLoader
from trainers import continued, make_trainer, started, weights_of

import nnunetv2_crossmatch.training.durable as durable
from nnunetv2_crossmatch.data.loader import make_augmenter
from nnunetv2_crossmatch.data.manifest import read_manifest, write_manifest
from nnunetv2_crossmatch.errors import InputError, UnsupportedError
from nnunetv2_crossmatch.folders import partial_path
from nnunetv2_crossmatch.training import interruption
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint
from nnunetv2_crossmatch.training.lock import lock_folder
from nnunetv2_crossmatch.training.named import trainer_class
from nnunetv2_crossmatch.training.trainer import nnUNetTrainerSemiSupervised

NAN = float("nan")

NAME = "nnUNetTrainerCrossMatch_3epochs_iters3_valiters2_seed7"
ONE_EPOCH = "nnUNetTrainerCrossMatch_1epochs_iters3_valiters2_seed7"
TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than everything else on data as small as this."""
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
    monkeypatch.setattr(nnUNetTrainerSemiSupervised, "plot_network_architecture", lambda self: None)
    monkeypatch.setattr("nnunetv2_crossmatch.training.trainer.draw_curves", lambda curves, file: None)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def unlabeled_of(tiny: TinyDataset) -> Path:
    return next(tiny.preprocessed.glob("*2d_unlabeled"))


def undisturbed(source: TinyDataset, folder: Path, name: str) -> Any:
    """The trainer ``name`` after a whole run without workers."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = TinyDataset(folder / "tiny")
        shutil.copytree(source.root, tiny.root)
        for variable, value in tiny.variables.items():
            patch.setenv(variable, value)
        patch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
        trainer = make_trainer(tiny, name)
        trainer.run_training()
        return trainer


@pytest.fixture(scope="module")
def straight(tiny_prepared: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return undisturbed(tiny_prepared, tmp_path_factory.mktemp("straight"), NAME)


@pytest.fixture(scope="module")
def one_epoch(tiny_prepared: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return undisturbed(tiny_prepared, tmp_path_factory.mktemp("one_epoch"), ONE_EPOCH)


# Before the start


def test_23_damaged_unlabeled_cases_stop_the_trainer_unless_it_is_told_not_to_read_them(
    prepared_copy: TinyDataset,
) -> None:
    file = unlabeled_of(prepared_copy) / "free_06.b2nd"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told = error_of(make_trainer(prepared_copy, NAME).on_train_start)
    assert told.startswith("error: unlabeled case damaged in ")
    assert "free_06.b2nd" in told
    trusting = make_trainer(prepared_copy, f"{NAME}_verify0")
    trusting.on_train_start()
    assert len(trusting.unlabeled_cases) == 4


def test_25_no_unlabeled_images_stop_the_trainer_with_the_command_that_helps(tiny_copy: TinyDataset) -> None:
    shutil.rmtree(tiny_copy.raw / "imagesUn")
    told = error_of(make_trainer(tiny_copy, NAME).on_train_start)
    assert "imagesUn: no unlabeled images. Fix: put images" in told


def test_25_a_preprocessing_that_was_killed_is_continued_by_the_trainer(prepared_copy: TinyDataset) -> None:
    folder = unlabeled_of(prepared_copy)
    file = folder.with_name(folder.name + ".json")
    manifest = read_manifest(file, "")
    for name in ("free_06", "free_07"):
        del manifest.cases[name]
        for left in folder.glob(f"{name}*"):
            left.unlink()
    write_manifest(file, manifest)
    partial_path(folder).mkdir()  # what a killed run leaves
    trainer = make_trainer(prepared_copy, NAME)
    trainer.on_train_start()
    assert len(trainer.unlabeled_cases) == 4


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_results"])
def test_26_the_hosts_command_tells_an_unset_variable_with_its_export_line(
    tiny_dataset: TinyDataset, variable: str
) -> None:
    given = {**tiny_dataset.env, **command_server.variables()}
    environment = {name: value for name, value in given.items() if name != variable}
    command = ["nnUNetv2_train", "998", "2d", "all", "-tr", NAME, "-device", "cpu"]
    program = shutil.which(command[0], path=environment["PATH"])
    done = subprocess.run([str(program), *command[1:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f'Fix: export {variable}="/path/to/your/{variable}"')
    assert "Traceback" not in done.stderr


def test_26_all_unset_variables_are_told_at_once(tiny_copy: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable)
    told = error_of(lambda: make_trainer(tiny_copy, NAME)).splitlines()
    assert [line.split("Fix: ")[1].split("=")[0] for line in told] == [
        "export nnUNet_preprocessed",
        "export nnUNet_results",
    ]


def test_27_a_cascade_is_refused_in_one_line(tiny_copy: TinyDataset) -> None:
    plans = json.loads(tiny_copy.plans_file.read_text())
    plans["configurations"]["3d_lowres"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    tiny_copy.plans_file.write_text(json.dumps(plans))
    with pytest.raises(UnsupportedError) as error:
        make_trainer(tiny_copy, NAME, "cascade")
    assert isinstance(error.value, NotImplementedError)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_28_without_gpu_the_option_for_the_cpu_is_told(tiny_copy: TinyDataset) -> None:
    plans = {**json.loads(tiny_copy.plans_file.read_text()), "continue_training": False}
    description = json.loads((tiny_copy.preprocessed / "dataset.json").read_text())
    arguments = plans, "2d", "all", description, torch.device("cuda")
    told = error_of(lambda: trainer_class("nnUNetTrainerCrossMatch")(*arguments))
    assert told.startswith("error: no GPU: ")
    assert "-device cpu" in told


def test_28_torch_2_9_is_refused(tiny_copy: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert 'Fix: pip install "torch!=2.9.*"' in error_of(lambda: make_trainer(tiny_copy, NAME))


def test_28_compiling_without_compiler_is_refused(tiny_copy: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tiny_copy, NAME)
    monkeypatch.setattr(trainer, "_do_i_compile", lambda: True)
    monkeypatch.setattr("nnunetv2_crossmatch.training.requirements.c_compiler", lambda: None)
    assert error_of(trainer.initialize).endswith("a C compiler. Fix: install it, or export nnUNet_compile=f")


@pytest.fixture
def start_method() -> Iterator[Callable[[str], None]]:
    """Sets the start method; a fork server has the libraries of nnU-Net, which its workers would import for seconds."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_forkserver_preload(list(command_server.LIBRARIES))
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        *(("fork", workers) for workers in (0, 1, 2)),
        ("spawn", 0),
        pytest.param("spawn", 1, marks=pytest.mark.slow),
        ("spawn", 2),
        ("forkserver", 0),
        ("forkserver", 1),
        pytest.param("forkserver", 2, marks=pytest.mark.slow),
    ],
)
def test_29_every_start_method_trains_with_any_number_of_workers(
    prepared_copy: TinyDataset, one_epoch: Any, start_method, method: str, workers: int, monkeypatch
) -> None:
    """Not only an epoch, but the same epoch."""
    start_method(method)
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    trainer = make_trainer(prepared_copy, ONE_EPOCH)
    trainer.run_training()
    assert log_of(trainer) == log_of(one_epoch)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_29_a_hundred_draws_of_all_workers_and_both_loaders_differ(start_method, method: str) -> None:
    start_method(method)
    drawn = []
    for stream in (0, 1):
        loader = make_augmenter(RandomLoader(100), None, (1, 0, stream), 0, 2, pin_memory=False)
        drawn += [next(loader)["data"].flatten().clone() for _ in range(4)]
        loader._finish()
    assert len(torch.cat(drawn).unique()) == 800


def test_30_a_validation_case_among_the_unlabeled_is_refused(prepared_copy: TinyDataset) -> None:
    image = "train_00_0000.nii.gz"
    shutil.copy(prepared_copy.raw / "imagesTr" / image, prepared_copy.raw / "imagesUn" / "secret_0000.nii.gz")
    told = error_of(make_trainer(prepared_copy, NAME).on_train_start)
    assert f"secret_0000.nii.gz: it holds the same bytes as imagesTr/{image}" in told


def test_30_a_fold_that_no_split_names_gets_the_hosts_own_note(prepared_copy: TinyDataset, capsys) -> None:
    splits = [{"train": ["train_00", "train_01"], "val": ["train_02", "train_03"]}]
    (prepared_copy.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    trainer = make_trainer(prepared_copy, NAME, fold=3)
    trainer.on_train_start()
    assert "You requested fold 3 for training but splits contain only 1 folds" in capsys.readouterr().out


# In the middle


class Poisoned:
    """A loss that is not finite in the given calls."""

    def __init__(self, loss: Any, calls: range) -> None:
        self.loss, self.calls, self.count = loss, calls, -1

    def __call__(self, *arguments: Any) -> torch.Tensor:
        self.count += 1
        return self.loss(*arguments) * (float("nan") if self.count in self.calls else 1.0)


def poisoned(tiny: TinyDataset, calls: range) -> Any:
    trainer = make_trainer(tiny, "nnUNetTrainerCrossMatch_4epochs_iters10_valiters1_execstacked")
    trainer.initialize()
    trainer.loss = Poisoned(trainer.loss, calls)
    return trainer


def test_31_twenty_steps_without_finite_loss_end_the_run_with_the_last_good_checkpoint(
    prepared_copy: TinyDataset,
) -> None:
    trainer = poisoned(prepared_copy, range(14, 1000))
    told = error_of(trainer.run_training)
    assert "loss or gradient not finite" in told
    assert re.search(r"last good checkpoint: checkpoint_best.pth, epoch \d\.", told)
    assert trainer.loss.count <= 14 + 20 + 10 + 3  # noticed at the next look; and validation
    assert weights_of(trainer).isfinite().all()
    for file in trainer.folder.glob("*.pth"):
        assert all(value.isfinite().all() for value in load_checkpoint(file)["network_weights"].values())


def test_31_a_few_steps_without_finite_loss_are_told_within_ten_and_skipped(prepared_copy: TinyDataset, capsys) -> None:
    trainer = poisoned(prepared_copy, range(3, 5))
    trainer.num_epochs = 1
    trainer.run_training()
    assert "Not finite in the last 10 steps: the loss in 2" in capsys.readouterr().out
    assert weights_of(trainer).isfinite().all()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_31_a_loss_or_a_gradient_alone_that_is_not_finite_ends_the_run(prepared_copy: TinyDataset, what: str) -> None:
    trainer = started(prepared_copy, f"{NAME}_execstacked")
    host_loss, batch = trainer.loss, next(trainer.dataloader_train)
    if what == "loss":
        trainer.loss = lambda *arguments: host_loss(*arguments) + float("nan")
    else:
        next(trainer.network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    told = error_of(lambda: [trainer.train_step(batch) for _ in range(20)])
    assert "loss or gradient not finite" in told
    assert weights_of(trainer).isfinite().all()


def test_31_counting_reads_the_device_every_tenth_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or [0, 0, 0])
    watch = durable.NonFiniteCounter(print, expect_overflow=False)
    for _ in range(40):
        watch.count(torch.tensor(1.0), torch.tensor(1.0))
    assert len(reads) == 4


def test_31_overflow_under_a_gradient_scaler_is_no_news(capsys) -> None:
    watch = durable.NonFiniteCounter(print, expect_overflow=True)
    for step in range(20):
        watch.count(torch.tensor(1.0), torch.tensor(float("inf") if step < 4 else 1.0))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("loss", "gradient", "overflow", "told"),
    [
        (NAN, 1.0, False, "the loss in 10, the gradient in 0; 10 steps"),
        (1.0, NAN, False, "the loss in 0, the gradient in 10; 10 steps"),
        (NAN, 1.0, True, "the loss in 10, the gradient in 0; 10 steps"),
        (NAN, NAN, True, "the loss in 10, the gradient in 10; 10 steps"),
        (1.0, NAN, True, ""),
        (1.0, 1.0, False, ""),
    ],
)
def test_31_either_of_loss_and_gradient_is_told(loss, gradient, overflow, told) -> None:
    lines: list[str] = []
    watch = durable.NonFiniteCounter(lines.append, expect_overflow=overflow)
    for _ in range(10):
        watch.count(torch.tensor(loss), torch.tensor(gradient))
    assert [told in line for line in lines] == [True] * bool(told)


def test_31_weights_that_are_not_finite_are_never_saved(prepared_copy: TinyDataset) -> None:
    trainer = started(prepared_copy, NAME)
    trainer.save_latest()
    before = (trainer.folder / "checkpoint_latest.pth").read_bytes()
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    assert "weights not finite" in error_of(trainer.save_latest)
    assert (trainer.folder / "checkpoint_latest.pth").read_bytes() == before


KILLED = """
import gc, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import TinyDataset
from trainers import continued
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
import nnunetv2_crossmatch.training.trainer as trainer
from nnunetv2_crossmatch.training import durable
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint

tiny = TinyDataset(Path(sys.argv[2]))
durable.SAVE_SECONDS = 0  # after every step
LocalLogger.plot_progress_png = trainer.draw_curves = lambda *arguments: None
trainer.nnUNetTrainerSemiSupervised.plot_network_architecture = lambda self: None
name = "nnUNetTrainerCrossMatch_900epochs_iters3_valiters1"
recursive_find_trainer_class_by_name(name)  # imports half the world; the children have it then
gc.freeze()  # a collection in a child would copy it
folder = tiny.results / f"{name}__nnUNetPlans__2d" / "fold_all"
places, dice = [], random.Random(0)
for attempt in range(21):
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        continued(tiny, name).run_training()
        os._exit(0)
    before, deadline = len(places), time.monotonic() + 60
    latest = folder / "checkpoint_latest.pth"
    seen = latest.stat().st_mtime_ns if latest.exists() else 0
    while not latest.exists() or latest.stat().st_mtime_ns == seen:
        assert time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.005)
    time.sleep(dice.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL if attempt < 20 else signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
    loaded = {file.name: load_checkpoint(file) for file in folder.glob("*.pth")}
    last = loaded["checkpoint_latest.pth"]
    places.append((last["current_epoch"], len(last["logging"].get("unfinished_epoch", ()))))
# Every run gets further; only one killed while it validates, after the 3 steps of an epoch, may stay where it was.
assert all(a < b or (a == b and a[1] == 3) for a, b in zip(places, places[1:])), places
assert os.waitstatus_to_exitcode(status) in (143, -15), status
assert not list(folder.glob("*.corrupt"))
print("went on to epoch", places[-1][0])
"""


@pytest.mark.slow
def test_32_twenty_kills_leave_readable_checkpoints_and_the_run_goes_on(prepared_copy: TinyDataset) -> None:
    script = prepared_copy.root / "killed.py"
    script.write_text(KILLED)
    done = prepared_copy.run("python", str(script), str(TESTS), str(prepared_copy.root))
    assert "went on to epoch" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_33_a_signal_saves_after_the_step_and_ends_with_its_code(
    prepared_copy: TinyDataset, number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(prepared_copy, NAME)
    at_step(trainer, 4, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as left:
        trainer.run_training()
    assert left.value.code == code
    saved = load_checkpoint(trainer.folder / "checkpoint_latest.pth")
    assert (saved["current_epoch"], len(saved["logging"]["unfinished_epoch"])) == (1, 2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_33_the_echo_of_a_signal_does_not_hinder_the_save(prepared_copy: TinyDataset) -> None:
    """A batch system ends the launcher too, whose end the processes are told by another signal."""
    trainer = make_trainer(prepared_copy, NAME)
    at_step(trainer, 4, lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGINT)])
    with pytest.raises(SystemExit) as left:
        trainer.run_training()
    assert left.value.code == 143
    assert (trainer.folder / "checkpoint_latest.pth").exists()


def test_33_a_second_signal_ends_the_run_at_once(prepared_copy: TinyDataset, monkeypatch) -> None:
    monkeypatch.setattr(interruption, "REPEAT_SECONDS", 0)
    trainer = make_trainer(prepared_copy, NAME)
    at_step(trainer, 4, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(SystemExit) as left:
        trainer.run_training()
    assert left.value.code == 130
    assert not (trainer.folder / "checkpoint_latest.pth").exists()


LEAVES = """
import os, signal, sys, time
from nnunetv2_crossmatch.training import interruption

interruption.GRACE_SECONDS = 0.2
wish = interruption.StopSignals()
wish.deferring = True
with wish.handled():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(3):
        wish.exit_after_grace_period()
    time.sleep(60)  # an exchange with a process that is gone
"""


def test_33_a_process_that_waits_for_one_that_is_gone_ends_too() -> None:
    begun = time.monotonic()
    assert subprocess.run([sys.executable, "-c", LEAVES]).returncode == 143
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(("rank", "saves", "leaves"), [(0, 1, 0), (1, 0, 1)])
def test_33_the_first_process_saves_and_the_others_leave_it_the_time(
    prepared_copy: TinyDataset, monkeypatch, rank: int, saves: int, leaves: int
) -> None:
    trainer = quick(prepared_copy, monkeypatch)
    left: list[int] = []
    monkeypatch.setattr(trainer.interruption, "exit_after_grace_period", lambda: left.append(rank))
    trainer.interruption.received, trainer.local_rank, trainer.steps_per_epoch = signal.SIGTERM, rank, 3
    with pytest.raises(SystemExit) if rank == 0 else nullcontext():
        trainer._after_each_step()
    assert (trainer.saved, len(left)) == (saves, leaves)


def test_33_without_checkpoints_nobody_is_told_to_continue(prepared_copy: TinyDataset, capsys) -> None:
    trainer = make_trainer(prepared_copy, NAME)
    trainer.disable_checkpointing = True
    at_step(trainer, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.run_training()
    said = capsys.readouterr().out
    assert "nothing is saved (--disable_checkpointing)" in said
    assert "continue with --c" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_33_the_command_ends_as_batch_systems_expect(prepared_copy: TinyDataset, number: int, code: int) -> None:
    """The signal goes to the loaders' workers, too, as from a terminal or a batch system."""
    environment = {**prepared_copy.env, "nnUNet_n_proc_DA": "2"}
    trainer = "nnUNetTrainerCrossMatch_900epochs_iters3_valiters1"
    command = ["nnUNetv2_train", "998", "2d", "all", "-tr", trainer, "-device", "cpu"]
    program = str(shutil.which(command[0], path=environment["PATH"]))
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([program, *command[1:]], env=environment, **pipes)
    for line in process.stdout:
        if "Epoch 1" in line:
            break
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "continue with --c" in out
    assert "Traceback" not in err


def test_34_a_full_disk_keeps_the_checkpoint_before_and_nothing_else(prepared_copy: TinyDataset) -> None:
    trainer = started(prepared_copy, NAME)
    small = prepared_copy.root / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True)
    if mount.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        trainer.folder = small
        trainer.save_latest()
        before = (small / "checkpoint_latest.pth").read_bytes()
        (small / "other").write_bytes(bytes(shutil.disk_usage(small).free - 20_000))
        told = error_of(trainer.save_latest)
        assert "disk full" in told
        assert "bytes are free" in told
        assert (small / "checkpoint_latest.pth").read_bytes() == before
        assert sorted(file.name for file in small.iterdir()) == ["checkpoint_latest.pth", "other"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


HOLD = """
import sys, time
from pathlib import Path
from nnunetv2_crossmatch.training.lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_35_a_second_process_is_refused_and_a_killed_one_forgotten(prepared_copy: TinyDataset) -> None:
    trainer = make_trainer(prepared_copy, NAME)
    command = [sys.executable, "-c", HOLD, str(trainer.folder)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told = error_of(trainer.on_train_start)
        assert f"process {other.pid} on {os.uname().nodename}" in told
        assert not (trainer.folder / "crossmatch_run.json").exists()
    finally:
        other.kill()
        other.communicate()
    trainer.on_train_start()
    assert json.loads((trainer.folder / ".running.json").read_text())["pid"] == os.getpid()


def test_35_the_lock_outlives_the_loaders_workers(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    loader = make_augmenter(RandomLoader(1), None, (1, 0, 0), 0, 2, pin_memory=False)
    next(loader)
    loader._finish()
    code = HOLD.replace("time.sleep(600)", "")
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"process {os.getpid()}" in other.stderr
    lock.release()


ORPHANS = """
import multiprocessing, os, sys
sys.path.insert(0, sys.argv[1])
from random_loader import RandomLoader
from nnunetv2_crossmatch.data.loader import make_augmenter
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2], force=True)
    loader = make_augmenter(RandomLoader(1), None, (1, 0, 0), 0, 2, pin_memory=False)
    next(loader)
    print(*(process.pid for process in loader._processes), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(method, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))]
)
def test_workers_end_within_ten_seconds_after_their_parent_was_killed(tmp_path: Path, method: str) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    with (tmp_path / "out").open("w+") as out:
        subprocess.run([sys.executable, str(script), str(TESTS), method], stdout=out, timeout=120)
        out.seek(0)
        pids = [int(pid) for pid in out.read().split()]
    assert len(pids) == 2
    end = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


# Continued


class Killed(BaseException):
    """Ends a training as abruptly as an exception can: nobody catches it."""


def at_step(trainer: Any, number: int, act: Callable[[], None], step: str = "train_step") -> None:
    """Let ``act`` happen in the step of that number, counted over epochs, before it does anything."""
    take, count = getattr(trainer, step), iter(range(10**6))

    def taken(batch: dict) -> dict:
        if next(count) == number:
            act()
        return take(batch)

    setattr(trainer, step, taken)


def killed() -> None:
    raise Killed


def log_of(trainer: Any) -> dict[str, list]:
    log = trainer.logger.get_checkpoint()
    return {name: values for name, values in log.items() if "timestamps" not in name}


def test_38_the_state_is_saved_after_so_many_seconds(monkeypatch) -> None:
    last = SimpleNamespace(saved_at=100.0)
    for passed, due in ((-0.5, False), (0.0, True), (0.5, True)):
        now = 100.0 + durable.SAVE_SECONDS + passed
        monkeypatch.setattr(durable, "time", SimpleNamespace(monotonic=lambda now=now: now))
        assert durable.DurableTrainer._save_is_due(last) == due


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("step", "number"), [("train_step", 1), ("train_step", 5), ("validation_step", 3)], ids=["early", "middle", "check"]
)
def test_38_a_run_that_was_killed_ends_as_one_that_was_not(
    prepared_copy: TinyDataset, straight: Any, workers: int, step: str, number: int, monkeypatch
) -> None:
    """Killed in the first epoch, inside of the second, and while it is validated; saved after every step."""
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    monkeypatch.setattr(durable, "SAVE_SECONDS", 0)
    trainer = make_trainer(prepared_copy, NAME)
    at_step(trainer, number, killed, step)
    with pytest.raises(Killed):
        trainer.run_training()
    second = continued(prepared_copy, NAME)
    assert len(second.steps) or second.current_epoch
    second.run_training()
    assert torch.equal(weights_of(second), weights_of(straight))
    assert log_of(second) == log_of(straight)
    assert second._best_ema == straight._best_ema
    assert optimizer_equal(second, straight)


def test_38_a_run_goes_on_from_the_best_checkpoint_with_the_whole_next_epoch(
    prepared_copy: TinyDataset, straight: Any
) -> None:
    """The only one there is when a run is killed in its second epoch."""
    trainer = make_trainer(prepared_copy, NAME)
    at_step(trainer, 4, killed)
    with pytest.raises(Killed):
        trainer.run_training()
    assert [file.name for file in trainer.folder.glob("*.pth")] == ["checkpoint_best.pth"]
    second = continued(prepared_copy, NAME)
    assert (second.current_epoch, len(second.steps)) == (1, 0)
    second.run_training()
    assert torch.equal(weights_of(second), weights_of(straight))


def optimizer_equal(a: Any, b: Any) -> bool:
    states = [trainer.optimizer.state_dict()["state"] for trainer in (a, b)]
    return all(torch.equal(states[0][key]["momentum_buffer"], states[1][key]["momentum_buffer"]) for key in states[1])


def test_38_a_run_that_begins_anew_is_not_continued_from_an_earlier_one(prepared_copy: TinyDataset, capsys) -> None:
    """Killed before its first save, in the folder of a finished run, which stays at hand under another name."""
    earlier = make_trainer(prepared_copy, NAME)
    earlier.run_training()
    trainer = make_trainer(prepared_copy, NAME)
    at_step(trainer, 1, killed)
    with pytest.raises(Killed):
        trainer.run_training()
    assert "checkpoint_final.pth is of an earlier run; kept as checkpoint_final.pth.previous" in capsys.readouterr().out
    kept = load_checkpoint(trainer.folder / "checkpoint_final.pth.previous")
    assert kept["current_epoch"] == earlier.num_epochs
    again = continued(prepared_copy, NAME)
    assert (again.resumed, again.current_epoch, len(again.steps)) == (False, 0, 0)


def test_38_without_interruption_inside_an_epoch_the_checkpoint_is_the_hosts(prepared_copy: TinyDataset) -> None:
    trainer = make_trainer(prepared_copy, NAME)
    trainer.run_training()
    host = make_trainer(prepared_copy, "nnUNetTrainer")
    saved = load_checkpoint(trainer.folder / "checkpoint_final.pth")
    assert "unfinished_epoch" not in saved["logging"]
    host.load_checkpoint(str(trainer.folder / "checkpoint_final.pth"))
    assert host.current_epoch == 3


def test_38_a_seed_that_was_drawn_is_restored(prepared_copy: TinyDataset) -> None:
    name = NAME.removesuffix("_seed7")
    first = started(prepared_copy, name)
    first.save_latest()
    assert continued(prepared_copy, name).seed == first.seed
    assert make_trainer(prepared_copy, name).seed != first.seed


@pytest.mark.parametrize(("epochs", "saves"), [(9, 0), (10, 1), (25, 2)])
def test_latest_is_saved_every_ten_epochs(prepared_copy: TinyDataset, monkeypatch, epochs: int, saves: int) -> None:
    trainer = quick(prepared_copy, monkeypatch)
    for _ in range(epochs):
        trainer.on_epoch_end()
    assert trainer.saved == saves


def test_latest_is_saved_every_ten_minutes(prepared_copy: TinyDataset, monkeypatch) -> None:
    trainer = quick(prepared_copy, monkeypatch)
    now = time.monotonic()
    for minutes in (9, 11, 12, 20):
        monkeypatch.setattr(time, "monotonic", lambda minutes=minutes: now + 60 * minutes)
        trainer._after_each_step()
    assert trainer.saved == 1


def quick(tiny: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trainer whose epochs are empty, and which counts in ``saved`` how often it saved the latest state."""
    trainer = make_trainer(tiny, "nnUNetTrainerCrossMatch")
    trainer.saved = 0

    def host_ends_epoch(self: Any) -> None:
        self.current_epoch += 1

    def save(filename: str) -> None:
        trainer.saved += filename.endswith("checkpoint_latest.pth")

    monkeypatch.setattr(durable.nnUNetTrainer, "on_epoch_end", host_ends_epoch)
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    return trainer


@pytest.fixture
def finished(prepared_copy: TinyDataset) -> Any:
    """A trainer with its final, latest and best checkpoint at the epochs 3, 2 and 1."""
    trainer = started(prepared_copy, NAME)
    for epoch, name in ((3, "final"), (2, "latest"), (1, "best")):
        trainer.current_epoch = epoch - 1
        trainer.save_checkpoint(str(trainer.folder / f"checkpoint_{name}.pth"))
    return trainer


def damaged(folder: Path, name: str, size: int) -> None:
    os.truncate(folder / f"checkpoint_{name}.pth", size)


def test_36_a_cut_off_final_checkpoint_gives_way_to_the_latest(
    prepared_copy: TinyDataset, finished: Any, capsys
) -> None:
    damaged(finished.folder, "final", 5000)
    trainer = continued(prepared_copy, NAME)
    assert trainer.current_epoch == 2
    assert "Continuing from checkpoint_latest.pth, epoch 2" in capsys.readouterr().out
    assert (trainer.folder / "checkpoint_final.pth.corrupt").stat().st_size == 5000


def test_36_an_empty_latest_checkpoint_gives_way_to_the_best(prepared_copy: TinyDataset, finished: Any) -> None:
    (finished.folder / "checkpoint_final.pth").unlink()
    damaged(finished.folder, "latest", 0)
    assert continued(prepared_copy, NAME).current_epoch == 1
    assert (finished.folder / "checkpoint_latest.pth.corrupt").exists()


def test_36_without_any_readable_checkpoint_nothing_starts_anew_in_silence(
    prepared_copy: TinyDataset, finished: Any
) -> None:
    for name in ("final", "latest", "best"):
        damaged(finished.folder, name, 100)
    assert "Fix: train anew without --c" in error_of(lambda: continued(prepared_copy, NAME))
    again = continued(prepared_copy, NAME)  # of a script that repeats --c: the host finds no checkpoint and says so
    told = error_of(again.on_train_start)
    assert "only checkpoint_best.pth.corrupt, checkpoint_final.pth.corrupt" in told
    make_trainer(prepared_copy, NAME).on_train_start()


@pytest.mark.parametrize("name", ["final", "best"])
def test_36_validation_loads_exactly_the_file_it_asks_for(prepared_copy: TinyDataset, finished: Any, name: str) -> None:
    trainer = make_trainer(prepared_copy, NAME)
    trainer.load_checkpoint(str(finished.folder / f"checkpoint_{name}.pth"))
    assert trainer.current_epoch == {"final": 3, "best": 1}[name]
    damaged(finished.folder, name, 5000)
    assert "checkpoint damaged" in error_of(
        lambda: trainer.load_checkpoint(str(finished.folder / f"checkpoint_{name}.pth"))
    )


def test_36_leftovers_of_a_killed_save_are_cleared_away(prepared_copy: TinyDataset, finished: Any) -> None:
    partial = partial_path(finished.folder / "checkpoint_latest.pth")
    partial.write_bytes(b"half")
    continued(prepared_copy, NAME)
    assert not partial.exists()


def change_plans(tiny: TinyDataset) -> None:
    plans = json.loads(tiny.plans_file.read_text())
    plans["configurations"]["2d"]["patch_size"] = [32, 32]
    tiny.plans_file.write_text(json.dumps(plans))


def change_label(tiny: TinyDataset) -> None:
    write_volume(blob_case(99)[1], tiny.preprocessed / "gt_segmentations" / "train_01.nii.gz")


def change_channel(tiny: TinyDataset) -> None:
    file = tiny.preprocessed / "dataset.json"
    file.write_text(file.read_text().replace('"MRI"', '"CT"'))


def change_image(tiny: TinyDataset) -> None:
    write_volume(blob_case(99)[0], tiny.raw / "imagesTr" / "train_01_0000.nii.gz")


def remove_unlabeled(tiny: TinyDataset) -> None:
    (tiny.raw / "imagesUn" / "free_05_0000.nii.gz").unlink()
    tiny.run("nnUNetv2_crossmatch_preprocess", "-d", "998", "-c", "2d", "-np", "1")


def change_default(tiny: TinyDataset) -> None:
    """As after an update of the package."""
    file = next(tiny.results.glob("*/fold_all/crossmatch_run.json"))
    file.write_text(file.read_text().replace('"eta": 0.3', '"eta": 0.4'))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_plans, "plans/configurations/patch_size: [16, 16] before, [32, 32] now"),
        (change_label, "training/train_01: "),
        (change_image, "images/train_01: ["),
        (change_channel, 'dataset.json/channel_names/0: "MRI" before, "CT" now'),
        (remove_unlabeled, "unlabeled/free_05: ["),
        (change_default, "settings/eta: 0.4 before, 0.3 now"),
    ],
)
def test_37_a_run_goes_on_with_what_it_began_with_or_not_at_all(
    prepared_copy: TinyDataset, change: Callable[[TinyDataset], None], told: str
) -> None:
    first = started(prepared_copy, NAME)
    first.save_latest()
    first.reading.release()
    change(prepared_copy)
    text = error_of(continued(prepared_copy, NAME).on_train_start)
    assert "error: run changed" in text
    assert told in text
    assert text.count(";") == 1  # the remedy's: one difference and no other


def test_37_a_run_of_a_version_without_some_setting_goes_on(prepared_copy: TinyDataset) -> None:
    first = started(prepared_copy, NAME)
    first.save_latest()
    file = first.folder / "crossmatch_run.json"
    record = json.loads(file.read_text())
    del record["made_of"]["settings"]["gpu_views"], record["made_of"]["images"], record["processes"]
    file.write_text(json.dumps(record))
    continued(prepared_copy, NAME).on_train_start()
    assert json.loads(file.read_text())["made_of"]["settings"]["gpu_views"] == 0


def test_37_a_run_goes_on_where_the_raw_images_are_not(prepared_copy: TinyDataset) -> None:
    first = started(prepared_copy, NAME)
    first.save_latest()
    file = first.folder / "crossmatch_run.json"
    images = json.loads(file.read_text())["made_of"]["images"]
    (prepared_copy.root / "raw").rename(prepared_copy.root / "elsewhere")
    continued(prepared_copy, NAME).on_train_start()
    assert json.loads(file.read_text())["made_of"]["images"] == images != {}


def test_another_number_of_processes_is_told(prepared_copy: TinyDataset, capsys) -> None:
    first = started(prepared_copy, NAME)
    first.save_latest()
    file = first.folder / "crossmatch_run.json"
    file.write_text(file.read_text().replace('"processes": 1', '"processes": 2'))
    continued(prepared_copy, NAME).on_train_start()
    assert "2 processes before, 1 now: other batches are drawn." in capsys.readouterr().out
    assert json.loads(file.read_text())["processes"] == 1


def test_37_removing_the_record_accepts_the_change(prepared_copy: TinyDataset) -> None:
    first = started(prepared_copy, NAME)
    first.save_latest()
    change_label(prepared_copy)
    (first.folder / "crossmatch_run.json").unlink()
    continued(prepared_copy, NAME).on_train_start()
    assert (first.folder / "crossmatch_run.json").exists()


def test_37_a_damaged_record_is_told(prepared_copy: TinyDataset) -> None:
    first = started(prepared_copy, NAME)
    (first.folder / "crossmatch_run.json").write_text("{}")
    assert "record of the run damaged" in error_of(lambda: make_trainer(prepared_copy, NAME, continuing=True))


def test_no_random_number_of_a_step_depends_on_what_came_before(prepared_copy: TinyDataset) -> None:
    """Feature dropout, CutMix and the batch itself: drawn alike after other draws were made."""
    trainers = [started(prepared_copy, f"{NAME}_warmup0_cutmix1_students5") for _ in range(2)]
    draws = [drawn.recorded(trainer) for trainer in trainers]
    np.random.seed(3)
    torch.manual_seed(3)
    batches = [next(trainer.dataloader_train) for trainer in trainers]
    assert torch.equal(batches[0]["unlabeled"], batches[1]["unlabeled"])
    reports = [trainer.train_step(batch) for trainer, batch in zip(trainers, batches, strict=True)]
    assert reports[0] == reports[1]
    assert draws[0][0].values() == draws[1][0].values()
    assert torch.equal(weights_of(trainers[0]), weights_of(trainers[1]))
