"""Dice of pseudo-labels against reference labels: its value, its alignment with the views, no effect on training."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_bar, blob_case, write_volume
from trainers import started

from nnunetv2_crossmatch.data.diagnosis import mean_dice, preprocess_reference_labels
from nnunetv2_crossmatch.errors import InputError

SHORT = "nnUNetTrainerCrossMatch_2epochs_iters3_valiters1_seed1_warmup0"


def label_manager(regions=None, classes=(1, 2)):
    return SimpleNamespace(has_regions=regions is not None, foreground_regions=regions, foreground_labels=list(classes))


def test_dice_is_the_mean_over_foreground_classes():
    labels = torch.tensor([[0, 1, 1, 2]])
    reference = torch.tensor([[[0, 1, 0, 2]]])
    assert mean_dice(labels, reference, label_manager()).item() == pytest.approx((2 / 3 + 1) / 2)


def test_classes_that_do_not_occur_do_not_count():
    labels, reference = torch.tensor([[0, 1]]), torch.tensor([[[0, 1]]])
    assert mean_dice(labels, reference, label_manager()).item() == 1
    assert mean_dice(labels * 0, reference * 0, label_manager()).isnan()


def test_regions_are_made_of_their_labels():
    labels = torch.tensor([[[True, True, False], [False, True, False]]])
    reference = torch.tensor([[[1, 2, 0]]])
    assert mean_dice(labels, reference, label_manager(regions=[(1, 2), 2])).item() == 1


@pytest.fixture
def with_reference_labels(prepared_copy):
    """Data set with reference labels of the unlabeled volumes, copied from the labeled volumes."""
    labels = sorted((prepared_copy.raw / "labelsTr").iterdir())
    (prepared_copy.raw / "labelsUn").mkdir()
    for image, label in zip(sorted((prepared_copy.raw / "imagesUn").iterdir()), labels, strict=True):
        shutil.copy(label, prepared_copy.raw / "labelsUn" / image.name.replace("_0000", ""))
    return prepared_copy


def test_a_reference_label_is_preprocessed_again_if_label_or_case_have_other_content(with_reference_labels, capsys):
    """Also if the new one is older, as those of archives are."""
    trainer = started(with_reference_labels, f"{SHORT}_diagnose1")
    reference = next(with_reference_labels.preprocessed.glob("*_2d_unlabeled_truth"))
    cases = with_reference_labels.preprocessed / reference.name.removesuffix("_truth")
    arguments = trainer.plans_manager, trainer.configuration_manager, trainer.unlabeled_cases
    first, second, *others = trainer.unlabeled_cases
    for file in reference.glob("*.npy"):
        np.save(file, np.zeros(1))
    write_volume(blob_case(99)[1], with_reference_labels.raw / "labelsUn" / f"{first}.nii.gz")
    os.utime(with_reference_labels.raw / "labelsUn" / f"{first}.nii.gz", (0, 0))
    with (cases / f"{second}.pkl").open("ab") as stream:
        stream.write(b" ")
    capsys.readouterr()
    preprocess_reference_labels(*arguments)
    told = capsys.readouterr()
    assert_bar(told.err, "Preprocessing reference labels for diagnosis", 2)
    assert told.out == ""
    redone = {case: np.load(reference / f"{case}.npy").size > 1 for case in trainer.unlabeled_cases}
    assert redone == {first: True, second: True, **dict.fromkeys(others, False)}
    preprocess_reference_labels(*arguments)
    assert capsys.readouterr().err == ""


def test_pseudo_label_dice_is_logged_without_effect_on_training(with_reference_labels):
    plain, diagnosed = (started(with_reference_labels, f"{SHORT}{tokens}") for tokens in ("", "_diagnose1"))
    outputs = []
    for trainer in (plain, diagnosed):
        outputs.append([trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)])
        trainer.on_train_epoch_end(outputs[-1])
    logged = diagnosed.logger.local_logger.my_fantastic_logging
    assert 0 <= logged["pseudo_dice"][0] <= 1
    assert "pseudo_dice" not in plain.logger.local_logger.my_fantastic_logging
    assert [step["loss"] for step in outputs[0]] == [step["loss"] for step in outputs[1]]
    weights = [torch.cat([p.flatten() for p in trainer.network.parameters()]) for trainer in (plain, diagnosed)]
    assert torch.equal(*weights)


def test_reference_label_is_aligned_with_its_view(with_reference_labels):
    """With labeled volumes as unlabeled ones, the reference label covers the bright ellipsoid of its image."""
    images = sorted((with_reference_labels.raw / "imagesUn").iterdir())
    for image, source in zip(images, sorted((with_reference_labels.raw / "imagesTr").iterdir()), strict=True):
        shutil.copy(source, image)
    for labeled in (with_reference_labels.raw / "imagesTr").iterdir():
        labeled.unlink()  # no longer needed, and equal bytes in imagesTr and imagesUn would be refused
    with_reference_labels.run(
        "nnUNetv2_crossmatch_preprocess", "-d", str(with_reference_labels.id), "-c", "2d", "-np", "1"
    )
    trainer = started(with_reference_labels, f"{SHORT}_diagnose1_ubatch8")
    batch = next(trainer.dataloader_train)
    weak, reference = batch["unlabeled"][:, 0, 0], batch["unlabeled_segmentation"][:, 0]
    assert reference.any()
    assert weak[reference == 1].mean() > weak[reference == 0].mean() + 1


def test_missing_reference_labels_are_all_named(prepared_copy):
    with pytest.raises(InputError) as caught:
        started(prepared_copy, f"{SHORT}_diagnose1")
    assert str(caught.value).count("reference label missing") == len(list((prepared_copy.raw / "imagesUn").iterdir()))
    assert np.all(["labelsUn" in line for line in str(caught.value).splitlines()])
