"""The trainer against the host's: found by name, equal when switched off, schedules, curves, checkpoints."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.logging import nnunet_logger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import parse_dataset_trainer_plans_configuration_from_path
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from trainers import make_trainer, started, weights_of

from nnunetv2_crossmatch.data.views import authors_intensity_transforms
from nnunetv2_crossmatch.errors import InputError, UnsupportedError
from nnunetv2_crossmatch.methods.crossmatch import CrossMatch, CrossMatchSettings
from nnunetv2_crossmatch.training import requirements
from nnunetv2_crossmatch.training.named import trainer_class
from nnunetv2_crossmatch.training.requirements import check_folds, check_no_cascade, check_samples_per_process
from nnunetv2_crossmatch.training.trainer import nnUNetTrainerSemiSupervised

SHORT = "nnUNetTrainerCrossMatch_2epochs_iters2_valiters1"
CURVES = ("loss_sup", "loss_ip", "loss_tkd", "loss_dkd", "unsup_weight", "confident_share", "agreement")


def test_host_finds_trainers_by_name(tiny_copy):
    plain = recursive_find_trainer_class_by_name("nnUNetTrainerCrossMatch")
    assert plain is trainer_class("nnUNetTrainerCrossMatch")
    assert issubclass(plain, nnUNetTrainerSemiSupervised)
    assert plain.method_class is CrossMatch
    named = recursive_find_trainer_class_by_name("nnUNetTrainerCrossMatch_2epochs_iters10_eta0p2_tau0p95")
    assert named.settings == CrossMatchSettings(epochs=2, iterations=10, eta=0.2, tau=0.95)
    assert named.__name__ == "nnUNetTrainerCrossMatch_2epochs_iters10_eta0p2_tau0p95"


def test_a_wrong_token_reaches_the_user_through_the_hosts_search(tiny_copy):
    with pytest.raises(InputError, match="bad token"):
        recursive_find_trainer_class_by_name("nnUNetTrainerCrossMatch_banana")


def test_a_foreign_trainer_name_stays_the_hosts_business(tiny_copy):
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
        recursive_find_trainer_class_by_name("nnUNetTrainerNobodyWrote")


def test_named_trainers_pickle_to_themselves():
    trainer = trainer_class(SHORT)
    assert pickle.loads(pickle.dumps(trainer)) is trainer


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_named_trainers_reach_other_processes(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(getattr, (trainer_class(SHORT), "__name__")) == SHORT


def test_host_parses_the_results_folder():
    path = f"/results/Dataset998_Tiny/{SHORT}_eta0p2__nnUNetPlans__2d"
    assert parse_dataset_trainer_plans_configuration_from_path(path)[1] == f"{SHORT}_eta0p2"


def test_switched_off_is_the_host_bit_for_bit(tiny_copy):
    ours, host = (make_trainer(tiny_copy, name) for name in (f"{SHORT}_unsup0", "nnUNetTrainer"))
    host.num_epochs = ours.num_epochs
    for trainer in (ours, host):
        trainer.initialize()
        trainer.set_deep_supervision_enabled(True)
    host.network.load_state_dict(ours.network.state_dict())
    batch = next(ours.get_dataloaders()[0])
    assert "unlabeled" not in batch
    for _ in range(3):
        losses = [trainer.train_step(copy.deepcopy(batch))["loss"] for trainer in (ours, host)]
        assert losses[0] == losses[1]
    assert torch.equal(weights_of(ours), weights_of(host))


def test_an_epoch_logs_every_curve_once(prepared_copy):
    trainer = started(prepared_copy, SHORT)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    trainer.on_train_epoch_end(outputs)
    logged = trainer.logger.local_logger.my_fantastic_logging
    for curve, name in [(name, name) for name in CURVES] + [("train_losses", "loss")]:
        assert logged[curve] == [pytest.approx(np.mean([float(step[name]) for step in outputs]))], curve
    assert outputs[0]["unsup_weight"] == 0 < outputs[1]["unsup_weight"]


def test_weights_and_biases_gets_every_curve_too(prepared_copy, monkeypatch):
    """Through the host's logger; the service is replaced by a list."""
    sent = []
    run = SimpleNamespace(config={}, step=0, summary={}, log=lambda values, step: sent.append((values, step)))
    monkeypatch.setattr(nnunet_logger, "wandb", SimpleNamespace(init=lambda **_: run))
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setattr(requirements, "_wandb_problems", lambda: iter(()))  # it need not be installed
    trainer = started(prepared_copy, f"{SHORT}_warmup0")
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)])
    received = {name: value for values, step in sent for name, value in values.items() if step == 0}
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert set(trainer.curves) <= received.keys()
    assert all(received[name] == pytest.approx(logged[name][0], nan_ok=True) for name in trainer.curves)


def test_no_labeled_target_reaches_the_unsupervised_losses(prepared_copy):
    """Other labels change the supervised loss and nothing else."""
    trainer = started(prepared_copy, f"{SHORT}_seed1_warmup0")
    batch = next(trainer.dataloader_train)
    state = copy.deepcopy(trainer.network.state_dict())
    first = trainer.train_step(copy.deepcopy(batch))
    trainer.network.load_state_dict(state)
    trainer.steps_done = 0
    batch["target"] = [1 - scale for scale in batch["target"]]
    second = trainer.train_step(batch)
    assert first["loss_sup"] != second["loss_sup"]
    assert [first[name] for name in CURVES[1:4]] == [second[name] for name in CURVES[1:4]]


def test_training_and_validation_share_no_draws(prepared_copy):
    trainer = started(prepared_copy, f"{SHORT}_seed1")
    keys = [[list(batch["keys"]) for batch in (next(loader) for _ in range(8))] for loader in loaders_of(trainer)]
    assert keys[0] != keys[1]


def loaders_of(trainer):
    return trainer.dataloader_train, trainer.dataloader_val


def test_gradients_are_clipped_at_the_hosts_norm(prepared_copy, monkeypatch):
    ours, host = started(prepared_copy, SHORT), make_trainer(prepared_copy, "nnUNetTrainer")
    host.initialize()
    batch, norms = next(ours.dataloader_train), []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda _, norm: norms.append(norm) or torch.tensor(1.0))
    for trainer in (host, ours):
        trainer.train_step(copy.deepcopy(batch))
    assert norms == [norms[0]] * 2


def test_views_made_by_the_trainer_come_from_moved_crops_and_repeat(prepared_copy):
    """``gpuviews1`` on the CPU: one crop per sample comes from the loader, three views of it go into the step."""
    trainer = started(prepared_copy, f"{SHORT}_seed1_gpuviews1")
    batch = next(trainer.dataloader_train)
    assert batch["unlabeled"].shape[1] == 1
    first, again = (trainer._on_device(batch)[0] for _ in range(2))
    trainer.local_rank = 1
    elsewhere = trainer._on_device(batch)[0]
    trainer.local_rank = 0
    assert torch.equal(first["weak"], batch["unlabeled"][:, 0])
    trainer.train_step(copy.deepcopy(batch))
    assert not torch.equal(first["strong1"], trainer._on_device(batch)[0]["strong1"])  # the next step draws anew
    for view in ("strong1", "strong2"):
        assert torch.equal(first[view], again[view])
        assert not torch.equal(first[view], elsewhere[view])
        assert not any(torch.equal(*pair) for pair in zip(first[view], first["weak"], strict=True))
    assert all(np.isfinite(float(value)) for value in trainer.train_step(batch).values())


def test_the_authors_recipe_changes_the_strong_views_and_nothing_else(prepared_copy):
    names = [f"{SHORT}_seed1{token}" for token in ("", "_viewsauthors", "_viewshost")]
    trainers = [started(prepared_copy, name) for name in names]
    host, authors, named = (next(each.dataloader_train)["unlabeled"][0] for each in trainers)
    of_authors = {type(one.transform) for one in authors_intensity_transforms(host.ndim - 2)}
    assert [of_authors <= {type(one.transform) for one in each.views.intensity} for each in trainers] == [
        False, True, False
    ]  # fmt: skip
    assert torch.equal(host, named)
    assert [torch.equal(*view) for view in zip(host, authors, strict=True)] == [True, False, False]


@pytest.mark.parametrize("tokens", ["students1", "students3_execsequential", "recompute1"])
def test_cheaper_steps_train_and_are_logged(prepared_copy, tokens, monkeypatch):
    trainer = started(prepared_copy, f"{SHORT}_seed1_{tokens}")
    before, seen = weights_of(trainer), []
    table_of_step = trainer.method.table_of_step
    monkeypatch.setattr(trainer.method, "table_of_step", lambda rng: seen.append(table_of_step(rng)) or seen[-1])
    for _ in range(6):
        trainer.train_step(next(trainer.dataloader_train))
    assert not torch.equal(weights_of(trainer), before)
    assert (len({table.students for table in seen}) > 1) == ("students" in tokens)
    trainer.on_train_epoch_end([])
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert all(len(logged[name]) == 1 for name in CURVES)
    assert np.isfinite(logged["loss_sup"][0] + logged["loss_ip"][0] + logged["loss_tkd"][0])


def test_a_seed_chooses_kernels_that_repeat_themselves(tiny_copy, monkeypatch):
    """The host lets cuDNN choose by timing; the flags are seen while the run lasts, and are the host's afterwards."""
    seen, cudnn = [], torch.backends.cudnn
    monkeypatch.setattr(
        nnUNetTrainer, "run_training", lambda _: seen.append((cudnn.enabled, cudnn.deterministic, cudnn.benchmark))
    )
    with cudnn.flags(enabled=True, benchmark=True, deterministic=False):
        for name in (SHORT, f"{SHORT}_seed5"):
            make_trainer(tiny_copy, name).run_training()
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    assert seen == [(True, False, True), (True, True, False)]


@pytest.mark.parametrize(
    ("name", "labeled", "unlabeled"),
    [("", 2, 2), ("_batch1", 1, 1), ("_batch3_ubatch2", 3, 2), ("_ubatch5", 2, 5)],
)
def test_batch_sizes_are_settings(prepared_copy, name, labeled, unlabeled):
    trainer = started(prepared_copy, f"{SHORT}{name}")
    batch = next(trainer.dataloader_train)
    assert (len(batch["data"]), len(batch["unlabeled"])) == (labeled, unlabeled)
    assert np.isfinite(float(trainer.train_step(batch)["loss"]))


@pytest.mark.parametrize(
    ("name", "told"),
    [("_ubatch1", True), ("_ubatch2", False), ("", False), ("_ubatch1_cutmix0", False), ("_ubatch1_unsup0", False)],
)
def test_that_cutmix_is_off_is_told_where_it_has_no_partner(tiny_copy, name, told):
    trainer = make_trainer(tiny_copy, f"{SHORT}{name}")
    trainer.initialize()
    assert ("CutMix is off" in Path(trainer.log_file).read_text()) == told


def keep_cases(folder: Path, count: int) -> None:
    names = sorted(file.stem for file in folder.glob("*.pkl"))
    for file in folder.iterdir():
        if not file.name.startswith(tuple(names[:count])):
            file.unlink()


def test_unlabeled_crops_are_as_large_before_the_augmentation_as_labeled_ones(prepared_copy):
    """Larger than the patch, so that a rotated crop has no empty corners."""
    trainer = started(prepared_copy, "nnUNetTrainerCrossMatch_1epochs_iters1_valiters1_seed0")
    labeled, unlabeled = trainer.labeled_loader, trainer._unlabeled_loader()
    assert tuple(unlabeled.patch_size) == tuple(labeled.patch_size) > tuple(labeled.final_patch_size)
    assert tuple(unlabeled.final_patch_size) == tuple(labeled.final_patch_size)


@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 4), (4, 1)])
def test_any_number_of_labeled_and_unlabeled_cases_trains(prepared_copy, labeled, unlabeled):
    keep_cases(prepared_copy.preprocessed / "nnUNetPlans_2d", labeled)
    for image in sorted((prepared_copy.raw / "imagesUn").iterdir())[unlabeled:]:
        image.unlink()
    prepared_copy.run("nnUNetv2_crossmatch_preprocess", "-d", str(prepared_copy.id), "-c", "2d", "-np", "1")
    trainer = started(prepared_copy, f"{SHORT}_warmup0")
    identifiers = trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder)
    assert (len(identifiers), len(trainer.unlabeled_cases)) == (labeled, unlabeled)
    report = trainer.train_step(next(trainer.dataloader_train))
    assert np.isfinite(float(report["loss"]))
    assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])


def test_a_planned_batch_of_one_becomes_two(tiny_copy):
    plans = json.loads(tiny_copy.plans_file.read_text())
    plans["configurations"]["2d"]["batch_size"] = 1
    tiny_copy.plans_file.write_text(json.dumps(plans))
    trainer = make_trainer(tiny_copy, SHORT)
    trainer.initialize()
    assert (trainer.batch_size, trainer.unlabeled_batch_size) == (2, 2)


def test_plans_in_the_results_stay_as_they_were(tiny_copy):
    trainer = make_trainer(tiny_copy, f"{SHORT}_batch7")
    trainer.initialize()
    assert trainer.plans_manager.plans["configurations"]["2d"]["batch_size"] == 2


def test_presets_choose_the_optimizer(tiny_copy):
    trainer = make_trainer(tiny_copy, "nnUNetTrainerCrossMatch_LA")
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.001


def test_a_learning_rate_of_zero_is_taken_by_its_word(tiny_copy):
    """And not for one that is left open."""
    assert make_trainer(tiny_copy, f"{SHORT}_lr0").initial_lr == 0


def test_missing_memory_makes_the_streams_sequential_and_says_so(prepared_copy, monkeypatch, capsys):
    def exhausted(*args: object, **kwargs: object) -> None:
        raise torch.cuda.OutOfMemoryError

    trainer = started(prepared_copy, SHORT)
    monkeypatch.setattr("nnunetv2_crossmatch.methods.table.run_stacked", exhausted)
    result = trainer.train_step(next(trainer.dataloader_train))
    assert trainer.method.stacked is False
    assert "run one after the other" in capsys.readouterr().out
    assert np.isfinite(float(result["loss"]))


@pytest.mark.parametrize("execution", ["stacked", "sequential"])
def test_the_trial_of_memory_changes_nothing(prepared_copy, execution):
    """auto, tried and chosen, takes the same step as the execution named outright."""
    auto, named = (started(prepared_copy, f"{SHORT}_seed3_warmup0{name}") for name in ("", f"_exec{execution}"))
    batch, before = next(auto.dataloader_train), weights_of(auto)
    reports = [trainer.train_step(copy.deepcopy(batch)) for trainer in (auto, named)]
    assert {name: float(value) for name, value in reports[0].items()} == {
        name: pytest.approx(float(value), rel=1e-4) for name, value in reports[1].items()
    }
    moved = weights_of(named) - before
    assert (weights_of(auto) - weights_of(named)).norm() < 1e-4 * moved.norm()
    assert auto.method.stacked is True


def test_the_trial_of_memory_takes_the_hosts_loss_without_exchange(prepared_copy):
    """Several processes would wait for each other in it, since one of them may run out of memory before."""
    trainer = started(prepared_copy, SHORT)
    assert trainer.local_loss() is trainer.loss
    trainer.distributed = True
    assert trainer._build_loss().loss.dc.ddp
    assert not trainer.local_loss().loss.dc.ddp


def test_mixed_precision_keeps_no_casts_between_teacher_and_students(prepared_copy, monkeypatch):
    """Older torch hands casts that were made without gradient on to streams that need one."""
    trainer = started(prepared_copy, SHORT)
    batch = next(trainer.dataloader_train)
    monkeypatch.setattr(trainer, "_on_device", lambda _: ({}, None))  # there is no CUDA here
    trainer.device = torch.device("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no CUDA here
        with trainer._step(batch).autocast():
            assert not torch.is_autocast_cache_enabled()


def test_labeled_cases_of_an_older_host_train_beside_ours(prepared_copy):
    """nnU-Net kept preprocessed cases as npz, and still trains on them; ours are always Blosc2."""
    (folder,) = prepared_copy.preprocessed.glob("*_2d")
    for name in nnUNetDatasetBlosc2.get_identifiers(str(folder)):
        data, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
        nnUNetDatasetNumpy.save_case(data[:], segmentation[:], properties, str(folder / name))
    for file in folder.glob("*.b2nd"):
        file.unlink()
    trainer = started(prepared_copy, SHORT)
    assert issubclass(trainer.dataset_class, nnUNetDatasetNumpy)
    assert np.isfinite(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    unpacked = sorted(folder.glob("*.npy"))
    before = [file.read_bytes() for file in unpacked]
    data, segmentation, _, _ = trainer.dataset_class(str(folder)).load_case(unpacked[0].stem)
    for array in (data, segmentation):
        assert isinstance(array, np.memmap)
        array += 1  # as an augmentation does in place, on a crop that is a view of the file
    assert [file.read_bytes() for file in unpacked] == before


@pytest.mark.parametrize(("unlabeled", "processes"), [(2, 3), (1, 2)])
def test_a_process_without_unlabeled_samples_is_refused(unlabeled, processes):
    with pytest.raises(InputError, match=rf"batch too small: {unlabeled} un.*{processes} processes. Fix: raise ubatch"):
        check_samples_per_process(unlabeled, processes)
    check_samples_per_process(processes, processes)


@pytest.mark.parametrize("mended", ["fold all", "own folds", "a fifth case"])
def test_folds_of_fewer_labeled_cases_than_the_host_makes_are_refused_with_the_way_out(tiny_copy, mended):
    labeled = tiny_copy.preprocessed / "nnUNetPlans_2d"
    with pytest.raises(InputError, match=r"too few labeled cases .*: 4 are there.*nnUNetv2_train \.\.\. 2d all"):
        check_folds(0, "2d", labeled)
    if mended == "own folds":
        (tiny_copy.preprocessed / "splits_final.json").touch()
    elif mended == "a fifth case":
        (labeled / "train_09.pkl").touch()
    check_folds("all" if mended == "fold all" else 0, "2d", labeled)


def test_a_trainer_refuses_such_a_fold_before_it_preprocesses_unlabeled_cases(tiny_copy):
    trainer = make_trainer(tiny_copy, SHORT, fold=0)
    with pytest.raises(InputError, match="too few labeled cases for folds"):
        trainer.on_train_start()
    assert not (tiny_copy.preprocessed / "nnUNetPlans_2d_unlabeled").exists()


def test_checkpoints_are_whole_and_load_into_the_stock_network(prepared_copy):
    trainer = started(prepared_copy, SHORT)
    file = prepared_copy.root / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    assert not list(prepared_copy.root.glob(".*partial"))
    saved = torch.load(file, weights_only=False)
    stock = make_trainer(prepared_copy, "nnUNetTrainer")
    stock.initialize()
    assert list(saved["network_weights"]) == list(stock.network.state_dict())


def test_a_failed_save_keeps_the_old_checkpoint(prepared_copy, monkeypatch):
    trainer = started(prepared_copy, SHORT)
    file = prepared_copy.root / "checkpoint_latest.pth"
    file.write_text("old")

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        trainer.save_checkpoint(str(file))
    assert file.read_text() == "old"


@pytest.mark.parametrize("name", ["filename_or_checkpoint", "checkpoint"])
def test_a_checkpoint_of_the_host_gets_the_missing_curves(prepared_copy, name):
    host = make_trainer(prepared_copy, "nnUNetTrainer")
    host.initialize()
    host.current_epoch = 2
    file = prepared_copy.root / "host.pth"
    host.save_checkpoint(str(file))
    trainer = make_trainer(prepared_copy, SHORT)
    trainer.load_checkpoint(**{name: str(file)})  # nnU-Net's name for it, in 2.8.1 and after
    trainer.current_epoch = 3
    trainer._log_curves({"loss_ip": 0.5})
    assert trainer.logger.local_logger.my_fantastic_logging["loss_ip"] == pytest.approx(
        [np.nan] * 3 + [0.5], nan_ok=True
    )


def test_a_cascade_is_refused_in_one_line(tiny_copy):
    plans = json.loads(tiny_copy.plans_file.read_text())
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    with pytest.raises(UnsupportedError, match="needs predictions of 3d_lowres") as raised:
        check_no_cascade(plans, "3d_cascade_fullres")
    assert isinstance(raised.value, NotImplementedError)
    assert "\n" not in str(raised.value)


def test_module_asks_nothing_of_names_that_are_not_trainers():
    module = sys.modules["nnunetv2_crossmatch.training.named"]
    assert not hasattr(module, "nnUNetTrainerSomethingElse")
    assert issubclass(trainer_class(SHORT), nnUNetTrainer)
