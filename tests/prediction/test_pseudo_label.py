"""The data set of self-training: what is in it, what a stopped run leaves, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import TinyDataset, assert_bar
from trainers import make_trainer

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.folders import exclusive
from nnunetv2_crossmatch.prediction import pseudo_labeled
from nnunetv2_crossmatch.prediction.predictor import CasePredictor, Prediction
from nnunetv2_crossmatch.prediction.pseudo_labeled import make_pseudo_labeled, surest

TRAINER = "nnUNetTrainerCrossMatch_1epochs_iters2_valiters1_seed1"
CASES = [f"free_{number:02d}" for number in range(4, 8)]


class Model:
    """In place of a trained one: a case is as sure as ``confidence`` says; the label of all voxels is 1."""

    regions = False

    def __init__(self, tiny: TinyDataset, confidence: dict[str, float], checkpoint: bytes = b"weights") -> None:
        self.facts = {"model": str(tiny.root / "model"), "checkpoints": {"fold_all/x": zlib.crc32(checkpoint)}}
        self.confidence, self.asked = confidence, []
        self.reader = SimpleNamespace(write_seg=lambda labels, file, properties: Path(file).write_bytes(b"labels"))

    def check_dataset(self, file: Path) -> dict:
        return json.loads(file.read_text())

    def predict(self, images: list[Path]) -> Prediction:
        case = images[0].name.removesuffix("_0000.nii.gz")
        self.asked.append(case)
        if case not in self.confidence:
            raise KeyboardInterrupt
        sure = np.full((1, 1, 1), self.confidence[case])
        return Prediction(np.ones((1, 1, 1)), np.stack([1 - sure, sure]), {})


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_the_mean_confidence_is_that_of_the_foreground():
    labels = np.array([[[0, 1, 2]]])
    p = np.array([[0.9, 0.2, 0.1], [0.05, 0.7, 0.4], [0.05, 0.1, 0.5]]).reshape(3, 1, 1, 3)
    assert Prediction(labels, p, {}).confidence(regions=False) == pytest.approx((0.7 + 0.5) / 2)
    assert Prediction(0 * labels, p, {}).confidence(regions=False) == pytest.approx((0.9 + 0.7 + 0.5) / 3)
    of_regions = ((0.8 + 0.7 + 0.9) / 3 + (0.9 + 0.6 + 0.5) / 3) / 2
    assert Prediction(labels, p, {}).confidence(regions=True) == pytest.approx(of_regions)


@pytest.mark.parametrize(("keep", "kept"), [(1, "abcd"), (0.5, "bd"), (0.3, "d"), (0.01, "d"), (0.7, "bcd")])
def test_the_surest_cases_are_kept_and_at_least_one(keep, kept):
    assert surest({"a": 0.1, "b": 0.8, "c": 0.5, "d": 0.9}, keep) == list(kept)


def test_a_stopped_run_goes_on_and_leaves_nothing_behind(tiny_copy, capsys):
    sure = dict.fromkeys(CASES[:2], 0.9)
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labeled(Model(tiny_copy, sure), tiny_copy.name, 911, "New")
    assert not (tiny_copy.root / "raw" / "Dataset911_New").exists()
    again = Model(tiny_copy, dict.fromkeys(CASES, 0.8))
    target = make_pseudo_labeled(again, tiny_copy.name, 911, "New", keep=0.5)
    assert again.asked == CASES[2:]
    assert_bar(capsys.readouterr().err, "predicting", 2)
    listed = json.loads((target / "pseudo_labels.json").read_text())
    assert {case: one["used"] for case, one in listed["cases"].items()} == {case: case in sure for case in CASES}
    assert {file.name for file in target.parent.iterdir()} == {tiny_copy.name, "Dataset911_New"}
    assert files(target / "labelsTr") == {f"{case}.nii.gz" for case in [*sure, *(f"train_{i:02d}" for i in range(4))]}
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 6


def test_a_run_killed_before_it_removed_its_predictions_is_finished_by_the_next(tiny_copy, monkeypatch):
    model, remove = Model(tiny_copy, dict.fromkeys(CASES, 0.9)), shutil.rmtree

    def killed(folder: Path, *options, **named) -> None:
        if str(folder).endswith(".predictions"):
            raise KeyboardInterrupt
        remove(folder, *options, **named)

    with monkeypatch.context() as patched:
        patched.setattr(pseudo_labeled.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            make_pseudo_labeled(model, tiny_copy.name, 911, "New")
    raw = tiny_copy.root / "raw"
    assert {file.name for file in raw.iterdir()} >= {"Dataset911_New", ".Dataset911_New.predictions"}
    before = files(raw / "Dataset911_New")
    assert make_pseudo_labeled(Model(tiny_copy, {}), tiny_copy.name, 911, "New") == raw / "Dataset911_New"
    assert {file.name for file in raw.iterdir()} == {tiny_copy.name, "Dataset911_New"}
    assert files(raw / "Dataset911_New") == before
    with pytest.raises(InputError, match="data set id taken"):
        make_pseudo_labeled(model, tiny_copy.name, 911, "New")


def test_only_the_listed_cases_are_taken_also_after_a_run_of_others(tiny_copy, tmp_path):
    listed, sure = tmp_path / "cases.txt", dict.fromkeys(CASES, 0.9)
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labeled(Model(tiny_copy, {CASES[0]: 0.9}), tiny_copy.name, 911, "New")
    listed.write_text(f"# two of them\n\n{CASES[3]} \n{CASES[1]}\n{CASES[3]}\n")
    model = Model(tiny_copy, sure)
    target = make_pseudo_labeled(model, tiny_copy.name, 911, "New", only=listed)
    assert model.asked == [CASES[1], CASES[3]]
    assert set(json.loads((target / "pseudo_labels.json").read_text())["cases"]) == {CASES[1], CASES[3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it names no case.*Fix: give a text file"),
        (b"# nothing\n\n", "it names no case"),
        (b"\xff\xfe\x00", "it is no text in UTF-8"),
        (b"free_4\nfree_05\nno_such\n", r"free_4 is not in .*imagesUn. Fix: write free_04(.|\n)*no_such .*Fix: remove"),
        (None, "file missing"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_before_anything_is_predicted(tiny_copy, tmp_path, content, message):
    listed, model = tmp_path / "cases.txt", Model(tiny_copy, dict.fromkeys(CASES, 0.9))
    if content is not None:
        listed.write_bytes(content)
    with pytest.raises(InputError, match=message):
        make_pseudo_labeled(model, tiny_copy.name, 911, "New", only=listed)
    assert model.asked == []


def test_a_run_of_another_model_is_not_gone_on_with(tiny_copy):
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labeled(Model(tiny_copy, {}), tiny_copy.name, 911, "New")
    with pytest.raises(InputError, match=r"unfinished run.*predictions of another model.*Fix: remove the folder"):
        make_pseudo_labeled(Model(tiny_copy, {}, b"others"), tiny_copy.name, 911, "New")


def test_nothing_is_overwritten_and_an_empty_folder_is_told(tiny_copy):
    model = Model(tiny_copy, {})
    for taken in (998, 912):
        (tiny_copy.root / "results" / "Dataset912_Old").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=rf"data set id taken.*{taken}.*Fix: choose another -o"):
            make_pseudo_labeled(model, tiny_copy.name, taken, "New")
    with pytest.raises(InputError, match=r"no name of a folder: --name a/b"):
        make_pseudo_labeled(model, tiny_copy.name, 911, "a/b")
    with exclusive(tiny_copy.root / "raw" / ".Dataset911_New.predictions"):
        with pytest.raises(InputError, match="another process writes here"):
            make_pseudo_labeled(model, tiny_copy.name, 911, "New")
    shutil.copy(tiny_copy.raw / "imagesTr" / "train_00_0000.nii.gz", tiny_copy.raw / "imagesUn")
    with pytest.raises(InputError, match=r"labeled case among the unlabeled.*train_00"):
        make_pseudo_labeled(model, tiny_copy.name, 911, "New")
    shutil.rmtree(tiny_copy.raw / "imagesUn")
    with pytest.raises(InputError, match="no unlabeled images"):
        make_pseudo_labeled(model, tiny_copy.name, 911, "New")
    assert model.asked == []


@pytest.mark.slow
def test_the_command_predicts_what_the_hosts_command_predicts(prepared_copy):
    """Then a model without the fold, and one of a data set with other labels, are refused."""
    number, raw = str(prepared_copy.id), prepared_copy.raw
    make_trainer(prepared_copy, TRAINER).run_training()
    for case in CASES[2:]:  # two are predicted, for time
        (raw / "imagesUn" / f"{case}_0000.nii.gz").unlink()
    (model,) = prepared_copy.results.iterdir()
    before = {name: (raw / name).read_bytes() for name in files(raw)}
    given = ("-m", str(model), "-d", number, "-o", "911", "-device", "cpu")
    done = prepared_copy.run("nnUNetv2_crossmatch_pseudo_label", *given)
    target = prepared_copy.root / "raw" / "Dataset911_TinyPseudo"
    assert f"Dataset911_TinyPseudo written to {target}" in done.stdout
    assert {line.split(":")[0] for line in re.split(r"[\r\n]+", done.stderr) if "%|" in line} == {"predicting"}
    assert "old shape" not in done.stdout  # as nnU-Net's preprocessing says
    assert {name: (raw / name).read_bytes() for name in files(raw)} == before
    where = ("-d", number, "-c", "2d", "-f", "all", "-tr", TRAINER, "-device", "cpu", "-npp", "0", "-nps", "0")
    predicted = prepared_copy.root / "predicted"
    prepared_copy.run("nnUNetv2_predict", "-i", str(raw / "imagesUn"), "-o", str(predicted), *where)
    for case in CASES[:2]:
        ours, hosts = (sitk.ReadImage(str(folder / f"{case}.nii.gz")) for folder in (target / "labelsTr", predicted))
        assert np.array_equal(*map(sitk.GetArrayFromImage, (ours, hosts)))
        assert ours.GetSpacing() == hosts.GetSpacing()
        image = target / "imagesTr" / f"{case}_0000.nii.gz"
        assert image.samefile(raw / "imagesUn" / image.name)
    with pytest.raises(InputError, match=r"no model.*checkpoint_final\.pth of 3 is missing"):
        CasePredictor(model, ["3"], "checkpoint_final.pth", torch.device("cpu"))
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "labels": {"background": 0, "other": 1}}))
    done = prepared_copy.run("nnUNetv2_crossmatch_pseudo_label", *given[:-3], "912", "-device", "cpu", check=False)
    assert done.returncode == 2
    assert "model of another data set" in done.stderr
    assert "Traceback" not in done.stderr
