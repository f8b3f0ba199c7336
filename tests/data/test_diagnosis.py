"""The pseudo-labels' true Dice: counted right, moved with the crop, never learned from."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trainers import started

from nnunetv2_crossmatch.data.diagnosis import mean_dice, prepare_truth
from nnunetv2_crossmatch.errors import InputError

SHORT = "nnUNetTrainerCrossMatch_2epochs_iters3_valiters1_seed1_warmup0"


def label_manager(regions=None, classes=(1, 2)):
    return SimpleNamespace(has_regions=regions is not None, foreground_regions=regions, foreground_labels=list(classes))


def test_dice_is_the_mean_over_foreground_classes():
    labels = torch.tensor([[0, 1, 1, 2]])
    truth = torch.tensor([[[0, 1, 0, 2]]])
    assert mean_dice(labels, truth, label_manager()).item() == pytest.approx((2 / 3 + 1) / 2)


def test_classes_that_do_not_occur_do_not_count():
    labels, truth = torch.tensor([[0, 1]]), torch.tensor([[[0, 1]]])
    assert mean_dice(labels, truth, label_manager()).item() == 1
    assert mean_dice(labels * 0, truth * 0, label_manager()).isnan()


def test_regions_are_made_of_their_labels():
    labels = torch.tensor([[[True, True, False], [False, True, False]]])
    truth = torch.tensor([[[1, 2, 0]]])
    assert mean_dice(labels, truth, label_manager(regions=[(1, 2), 2])).item() == 1


@pytest.fixture
def with_truth(prepared_copy):
    """Unlabeled volumes that have reference labels: those of the labeled ones stand in."""
    labels = sorted((prepared_copy.raw / "labelsTr").iterdir())
    (prepared_copy.raw / "labelsUn").mkdir()
    for image, label in zip(sorted((prepared_copy.raw / "imagesUn").iterdir()), labels, strict=True):
        shutil.copy(label, prepared_copy.raw / "labelsUn" / image.name.replace("_0000", ""))
    return prepared_copy


def test_truth_is_made_again_after_its_label_or_case_was(with_truth):
    trainer = started(with_truth, f"{SHORT}_diagnose1")
    truth = next(with_truth.preprocessed.glob("*_2d_unlabeled_truth"))
    cases = with_truth.preprocessed / truth.name.removesuffix("_truth")
    arguments = trainer.plans_manager, trainer.configuration_manager, trainer.unlabeled_cases
    first, second, *others = trainer.unlabeled_cases
    for file in truth.iterdir():
        np.save(file, np.zeros(1))
    for source in (with_truth.raw / "labelsUn" / f"{first}.nii.gz", cases / f"{second}.pkl"):
        source.touch()
    prepare_truth(*arguments)
    again = {case: np.load(truth / f"{case}.npy").size > 1 for case in trainer.unlabeled_cases}
    assert again == {first: True, second: True, **dict.fromkeys(others, False)}


def test_true_dice_is_logged_and_changes_nothing(with_truth):
    plain, diagnosed = (started(with_truth, f"{SHORT}{tokens}") for tokens in ("", "_diagnose1"))
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


def test_truth_lies_on_its_image(with_truth):
    """The blob is bright; with a labeled volume in the place of an unlabeled one, so is its truth."""
    images = sorted((with_truth.raw / "imagesUn").iterdir())
    for image, source in zip(images, sorted((with_truth.raw / "imagesTr").iterdir()), strict=True):
        shutil.copy(source, image)
    for leaking in (with_truth.raw / "imagesTr").iterdir():
        leaking.unlink()  # planning is over: the same bytes on both sides would be refused
    with_truth.run("nnUNetv2_crossmatch_preprocess", "-d", str(with_truth.id), "-c", "2d", "-np", "1")
    trainer = started(with_truth, f"{SHORT}_diagnose1_ubatch8")
    batch = next(trainer.dataloader_train)
    weak, truth = batch["unlabeled"][:, 0, 0], batch["unlabeled_segmentation"][:, 0]
    assert truth.any()
    assert weak[truth == 1].mean() > weak[truth == 0].mean() + 1


def test_missing_reference_labels_are_all_named(prepared_copy):
    with pytest.raises(InputError) as raised:
        started(prepared_copy, f"{SHORT}_diagnose1")
    assert str(raised.value).count("reference label missing") == len(list((prepared_copy.raw / "imagesUn").iterdir()))
    assert np.all(["labelsUn" in line for line in str(raised.value).splitlines()])
