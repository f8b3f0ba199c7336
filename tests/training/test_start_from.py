"""A run that begins with a finished model: its weights, its record, its resume, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from trainers import continued, make_trainer, started

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.training.start_from import origin_of, start_from

LENGTH = "2epochs_iters3_valiters1_seed1"
NAME = f"nnUNetTrainerCrossMatch_{LENGTH}_lr0p001_ema0p9_warmup0"


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten().clone() for value in module.state_dict().values()])


@pytest.fixture
def model(prepared_copy):
    """Checkpoint of a run of another trainer."""
    trainer = started(prepared_copy, f"nnUNetTrainerFixMatch_{LENGTH}")
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_latest()
    return trainer


def begun(tiny, name=NAME):
    trainer = continued(tiny, name)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def test_the_run_begins_with_all_weights_in_epoch_0_and_can_be_continued(prepared_copy, model):
    file = model.folder / "checkpoint_latest.pth"
    written = start_from(make_trainer(prepared_copy, NAME), file)
    assert written.is_file()
    trainer = begun(prepared_copy)
    assert torch.equal(flat(trainer.network), flat(model.network))
    assert (trainer.current_epoch, trainer.steps_done, trainer.initial_lr) == (0, 0, 0.001)
    record = json.loads((trainer.folder / "crossmatch_run.json").read_text())["made_of"]
    assert record["started_from"].keys() == {"crc32", "epochs"}
    for step in range(3):
        trainer.train_step(next(trainer.dataloader_train))
        if step == 0:
            trainer.save_latest()
    trainer.stop_loaders()
    again = begun(prepared_copy)
    for _ in range(2):
        again.train_step(next(again.dataloader_train))
    assert torch.equal(flat(again.network), flat(trainer.network))
    assert torch.equal(flat(again.method), flat(trainer.method))


def test_a_run_without_a_model_records_that(prepared_copy):
    trainer = started(prepared_copy, f"nnUNetTrainerFixMatch_{LENGTH}")
    assert json.loads((trainer.folder / "crossmatch_run.json").read_text())["made_of"]["started_from"] is None


def test_a_run_that_was_begun_is_not_overwritten(prepared_copy, model):
    start_from(make_trainer(prepared_copy, NAME), model.folder / "checkpoint_latest.pth")
    with pytest.raises(InputError, match=r"run begun already in .*checkpoint_latest\.pth"):
        start_from(make_trainer(prepared_copy, NAME), model.folder / "checkpoint_latest.pth")


def test_models_of_other_labels_plans_and_configurations_are_refused(prepared_copy, model):
    file = model.folder / "checkpoint_latest.pth"
    with pytest.raises(InputError, match=r"model of another configuration.*trained with 2d, the run is 3d_fullres"):
        start_from(make_trainer(prepared_copy, NAME, "3d_fullres"), file)
    saved = torch.load(file, weights_only=False)
    saved["init_args"]["plans"]["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    saved["init_args"]["dataset_json"]["labels"] = {"background": 0, "other": 1}
    torch.save(saved, file)
    trainer = make_trainer(prepared_copy, NAME)
    with pytest.raises(InputError, match=r"model of other plans or labels.*spacing, labels differ"):
        start_from(trainer, file)
    assert not trainer.folder.is_dir() or not list(trainer.folder.glob("checkpoint_*"))


@pytest.mark.parametrize("content", ["", "[]", '{"crc32": 1}'])
def test_a_damaged_note_of_the_origin_is_one_line(tmp_path, content):
    (tmp_path / "crossmatch_started_from.json").write_text(content)
    with pytest.raises(InputError, match=r"origin of the run unreadable in .*started_from\.json"):
        origin_of(tmp_path)
