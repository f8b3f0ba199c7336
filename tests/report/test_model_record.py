from __future__ import annotations

import pytest
import torch

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.report.model_record import read_model
from nnunetv2_crossmatch.training.step_log import UNFINISHED
from tests.trained import write_model


def test_the_final_checkpoint_of_a_fold_is_read(tmp_path):
    model = write_model(tmp_path / "model")
    (model / "fold_0" / "checkpoint_best.pth").write_bytes(b"not read")
    assert read_model(model).folds[0].checkpoint == "checkpoint_final.pth"


def test_all_folds_are_read(tmp_path):
    assert [fold.name for fold in read_model(write_model(tmp_path / "model", folds=2)).folds] == ["fold_0", "fold_1"]


def test_the_time_of_all_epochs_is_summed(tmp_path):
    assert read_model(write_model(tmp_path / "model")).folds[0].hours == pytest.approx(1.5)


def test_curves_are_single_numbers_per_epoch(tmp_path):
    curves = read_model(write_model(tmp_path / "model")).folds[0].curves
    assert set(curves) == {"training loss", "validation loss", "loss_ip"}


def test_an_interrupted_epoch_is_not_in_the_curves(tmp_path):
    """The latest checkpoint of an unfinished run contains the values of single steps."""
    file = write_model(tmp_path / "model") / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file)
    checkpoint["logging"][UNFINISHED] = [{"loss": 0.1, "loss_ip": 0.2}]
    torch.save(checkpoint, file)
    assert set(read_model(tmp_path / "model").folds[0].curves) == {"training loss", "validation loss", "loss_ip"}


def test_only_settings_in_the_name_differ_from_the_default(tmp_path):
    rows = read_model(write_model(tmp_path / "model")).settings
    assert {row.token: row.value for row in rows if not row.is_default} == {"epochs": "3", "eta": "0.2"}


def test_a_foreign_trainer_has_no_settings(tmp_path):
    assert read_model(write_model(tmp_path / "model", "nnUNetTrainer")).settings == ()


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="no trained model"):
        read_model(tmp_path)


def test_every_damaged_checkpoint_is_named(tmp_path):
    model = write_model(tmp_path / "model", folds=2)
    for fold in range(2):
        (model / f"fold_{fold}" / "checkpoint_final.pth").write_bytes(b"cut off")
    with pytest.raises(InputError) as error:
        read_model(model)
    assert len(error.value.problems) == 2


def test_the_properties_come_from_the_plans(tmp_path):
    model = read_model(write_model(tmp_path / "model"))
    assert model.properties == {
        "data set": "Dataset001_Balls",
        "trainer": "nnUNetTrainerCrossMatch_3epochs_eta0p2",
        "plans": "nnUNetPlans",
        "configuration": "3d_fullres",
        "network": "PlainConvUNet",
        "patch size": "16 × 32 × 32",
        "voxel size, mm": "2 × 1 × 1",
        "planned batch size": "2",
    }
    assert (model.folder, model.trainer) == (tmp_path / "model", model.properties["trainer"])


def test_an_epoch_without_an_end_takes_no_time(tmp_path):
    file = write_model(tmp_path / "model") / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file)
    checkpoint["logging"]["epoch_end_timestamps"].pop()
    torch.save(checkpoint, file)
    fold = read_model(tmp_path / "model").folds[0]
    assert (fold.hours, fold.epochs) == (pytest.approx(1.0), 3)


def test_empty_curves_and_internal_curves_of_nnunet_are_left_out(tmp_path):
    file = write_model(tmp_path / "model") / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file)
    checkpoint["logging"] |= {"ema_fg_dice": [0.1], "lrs": [0.01], "mean_fg_dice": [], "agreement": []}
    torch.save(checkpoint, file)
    curves = read_model(tmp_path / "model").folds[0].curves
    assert list(curves) == ["training loss", "validation loss", "learning rate", "loss_ip"]
    assert curves["training loss"] == [0.3, 0.2, 0.1]


def test_a_folder_without_plans_is_refused(tmp_path):
    (write_model(tmp_path / "model") / "plans.json").unlink()
    with pytest.raises(InputError, match=r"no trained model in .*: expected plans\.json .*Fix: give <results>"):
        read_model(tmp_path / "model")
