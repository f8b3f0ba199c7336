"""All commands on real LA volumes (ACDC: ``test_protocol``), and a training with a wrong token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from real_volumes import DATA, subsampled_volumes

TRAINER = "nnUNetTrainerCrossMatch_2epochs_iters2_valiters1_seed1"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real volumes in {DATA}")


def shrink_plans(plans_file: Path, configuration: str, patch_size: list[int], batch_size: int = 2) -> None:
    """Reduce the plans to a small patch and few features: a step takes a second instead of minutes."""
    plans = json.loads(plans_file.read_text())
    chosen = plans["configurations"][configuration]
    network = chosen["architecture"]["arch_kwargs"]
    stages = 4
    for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
        network[key] = network[key][:stages]
    network.update(n_stages=stages, features_per_stage=[8, 16, 32, 32], n_conv_per_stage_decoder=[1] * (stages - 1))
    chosen.update(patch_size=patch_size, batch_size=batch_size)
    plans_file.write_text(json.dumps(plans))


@pytest.mark.slow
def test_a_wrong_token_ends_training_with_one_line(tiny_copy):
    result = tiny_copy.run(
        "nnUNetv2_train",
        str(tiny_copy.id),
        "2d",
        "all",
        "-tr",
        "nnUNetTrainerCrossMatch_eta",
        "-device",
        "cpu",
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: bad token")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.real_data
@real_data
def test_la_in_reduced_form(empty_folders):
    """The four published labeled cases and two unlabeled ones, every fourth voxel of them."""
    run = empty_folders.run
    files = sorted((DATA / "la_h5").glob("*/mri_norm2.h5"))[:6]
    data = subsampled_volumes(files, DATA / "la_h5", empty_folders.root / "la", (slice(None, None, 4),) * 3)
    run("nnUNetv2_crossmatch_convert_LA", "-i", str(data), "-d", "501", "--labeled", "4", "--allow-missing")
    raw, preprocessed = (empty_folders.root / kind / "Dataset501_LA" for kind in ("raw", "preprocessed"))
    assert len(list((raw / "imagesUn").iterdir())) == 2
    # The test volumes are not available; a labeled volume replaces them for prediction.
    for part in ("images", "labels"):
        (raw / f"{part}Val").mkdir(exist_ok=True)
        first = sorted((raw / f"{part}Tr").iterdir())[0]
        (raw / f"{part}Val" / first.name).symlink_to(first)
    run("nnUNetv2_plan_and_preprocess", "-d", "501", "-c", "3d_fullres", "-npfp", "1", "-np", "1", nnUNet_n_proc_DA="1")
    shrink_plans(preprocessed / "nnUNetPlans.json", "3d_fullres", [24, 32, 32])
    run("nnUNetv2_crossmatch_preprocess", "-d", "501", "-c", "3d_fullres", "-np", "1")
    trainer = TRAINER.replace("2epochs", "1epochs")
    run("nnUNetv2_train", "501", "3d_fullres", "0", "-tr", trainer, "-device", "cpu")
    check_predictions(empty_folders, raw, "501", "3d_fullres", "0", trainer)


def check_predictions(tiny, raw: Path, dataset: str, configuration: str, fold: str, trainer: str = TRAINER) -> None:
    """Predict two volumes of ``imagesVal``, check that predictions have the grid of the images, and evaluate them."""
    images, labels, predictions = tiny.root / "images", tiny.root / "labels", tiny.root / "predictions"
    for part, folder in (("images", images), ("labels", labels)):
        folder.mkdir()
        for file in sorted((raw / f"{part}Val").iterdir())[:2]:
            (folder / file.name).symlink_to(file)
    where = ("-d", dataset, "-c", configuration, "-f", fold, "-tr", trainer, "-device", "cpu")
    short = ("--disable_tta", "-step_size", "1", "-npp", "0", "-nps", "0")
    tiny.run("nnUNetv2_predict", "-i", str(images), "-o", str(predictions), *where, *short)
    for file in labels.iterdir():
        reference, prediction = (sitk.ReadImage(str(folder / file.name)) for folder in (labels, predictions))
        assert reference.GetSize() == prediction.GetSize()
        assert np.allclose(reference.GetSpacing(), prediction.GetSpacing())
    # The conversion record marks nominal spacings.
    tiny.run("nnUNetv2_crossmatch_evaluate", "-r", str(labels), "-p", str(predictions))
    scores = json.loads((predictions / "scores.json").read_text())
    assert len(scores["cases"]) == len(list(labels.iterdir()))
