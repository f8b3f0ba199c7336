"""A review of the tiny data set: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE_ZYX, TinyDataset, copy_dataset, write_volume
from trainers import untrained_model

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.folders import exclusive
from nnunetv2_crossmatch.prediction.predictor import CasePredictor
from nnunetv2_crossmatch.review import build, case_results
from nnunetv2_crossmatch.review.build import ReviewRequest, write_review
from nnunetv2_crossmatch.review.case_results import Measuring, read_contested, read_result
from nnunetv2_crossmatch.review.streams import Streams

TRAINER = "nnUNetTrainerCrossMatch_1epochs_seed1"
CASES = [f"free_{number:02d}" for number in range(4, 8)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KINDS = ["strong view", "weak dropout", "strong dropout"]
# Clicks through the page, and leaves what it finds in its title.
CLICKS = """<script>addEventListener("load", () => {
  const order = () => [...document.querySelectorAll(".review tbody th")].map(cell => cell.dataset.sort).join();
  const heading = [...document.querySelectorAll(".review thead th button")].find(one => one.textContent === "case");
  heading.click(); const down = order(); heading.click(); const up = order();
  document.getElementById("suggested").click();
  const link = document.getElementById("download");
  fetch(link.href).then(answer => answer.text()).then(text => {
    document.title = JSON.stringify({down, up, text, count: document.getElementById("count").textContent,
      width: document.documentElement.scrollWidth, window: innerWidth});
  });
});</script>"""


def load(folder: Path, **options: object) -> CasePredictor:
    return CasePredictor(folder, None, "checkpoint_final.pth", torch.device("cpu"), mirroring=False, **options)


@pytest.fixture(scope="module")
def shared(tiny_dataset, tmp_path_factory):
    """The tiny data set with a CrossMatch model that has not learned yet; read it only."""
    with pytest.MonkeyPatch.context() as patched:
        tiny = copy_dataset(tiny_dataset, tmp_path_factory.mktemp("review"), patched)
        yield tiny, untrained_model(tiny, TRAINER)


@pytest.fixture
def tiny(shared, monkeypatch) -> TinyDataset:
    for name, value in shared[0].variables.items():
        monkeypatch.setenv(name, value)
    return shared[0]


@pytest.fixture(scope="module")
def held_out(shared, tmp_path_factory) -> tuple[Path, Path]:
    """Six labeled cases in folders of their own."""
    folder = tmp_path_factory.mktemp("held_out")
    for kind in ("images", "labels"):
        for part in ("Tr", "Ts"):
            shutil.copytree(shared[0].raw / f"{kind}{part}", folder / kind, dirs_exist_ok=True)
    return folder / "images", folder / "labels"


def request(tiny: TinyDataset, output: Path, **options: object) -> ReviewRequest:
    return replace(ReviewRequest(tiny.name, output, draws=1, count=2, pictures=3), **options)


@pytest.fixture(scope="module")
def reviewed(shared, held_out, tmp_path_factory) -> Path:
    """A review of all cases, with held-out ones."""
    output = tmp_path_factory.mktemp("reviewed") / "review.html"
    with pytest.MonkeyPatch.context() as patched:
        for name, value in shared[0].variables.items():
            patched.setenv(name, value)
        write_review(load(shared[1]), request(shared[0], output, held_out=held_out, command="the <command>"))
    return output


def content_of(output: Path) -> dict:
    return json.loads(output.with_suffix(".json").read_text())


def test_the_page_is_one_file_whose_links_lead_somewhere(reviewed):
    text = reviewed.read_text()
    anchors = re.findall(r'\bid="([^"]+)"', text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(anchors)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert "the &lt;command&gt;" in text
    assert len(text) < 1_000_000


def test_page_csv_and_json_agree(reviewed):
    content, rows = content_of(reviewed), list(csv.DictReader(reviewed.with_suffix(".csv").open()))
    assert {row["case"] for row in rows} == set(CASES) == content["cases"].keys()
    assert [row["case"] for row in rows] == re.findall(r'<th scope="row" data-sort="([^"]+)"', reviewed.read_text())
    uncertainties = [float(row["uncertainty"]) for row in rows]
    assert uncertainties == sorted(uncertainties, reverse=True)
    for row in rows:
        one = content["cases"][row["case"]]
        assert list(one["disagreement"]) == KINDS
        assert float(row["uncertainty"]) == pytest.approx(np.mean([np.mean(one["disagreement"][k]) for k in KINDS]))
        assert float(row["expected_dice"]) == one["expected_dice"]["dice"]
        assert float(row["blob volume_ml"]) == pytest.approx(one["classes"]["blob"]["voxels"] * 1.5 / 1000)
    chosen = [one["case"] for one in content["label_next"]]
    assert [row["case"] for row in sorted(rows, key=lambda row: row["label_next"]) if row["label_next"]] == chosen
    assert chosen[0] == rows[0]["case"]
    assert content["calibration"]["cases"] == 6
    assert content["left_out"] == [] or "does not tell Dice" in content["left_out"][0]


def test_pictures_are_those_of_three_planes_of_the_worst_cases(reviewed):
    text = reviewed.read_text()
    assert len(re.findall("<article", text)) == 3
    assert len(re.findall('<img src="data:image/webp;base64,', text)) == 9
    assert {"along z", "along y", "along x"} == set(re.findall(r"<figcaption>(along .)", text))


def test_a_prediction_is_that_of_the_predictor_and_contested_voxels_have_its_grid(tiny, shared, reviewed):
    work = reviewed.with_name("review_cases")
    model = load(shared[1])
    prediction = model.predict([tiny.raw / "imagesUn" / f"{CASES[0]}_0000.nii.gz"])
    written, _ = model.reader.read_seg(str(work / "predictions" / f"{CASES[0]}.nii.gz"))
    assert np.array_equal(written[0], prediction.labels)
    assert read_contested(work / "contested" / f"{CASES[0]}.npz").shape == SHAPE_ZYX


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_table_sorts_and_ticks_become_a_list(reviewed, tmp_path):
    """In a browser, the policy that forbids the probe aside."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", reviewed.read_text())
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"{CLICKS}</body>"))
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [*browser, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(html.unescape(re.search(r"<title>(\{.*\})</title>", dom).group(1)))
    assert found["up"].split(",") == sorted(CASES) == found["down"].split(",")[::-1]
    chosen = [one["case"] for one in content_of(reviewed)["label_next"]]
    assert found["text"].split() == sorted(chosen)
    assert found["count"] == "2 ticked"
    assert found["width"] <= found["window"]


def test_a_killed_review_goes_on_and_ends_as_if_it_had_not_been(
    tiny, shared, reviewed, held_out, tmp_path, monkeypatch
):
    asked: list[str] = []
    predict = CasePredictor.preprocess

    def counted(self, images):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(images[0].name)
        return predict(self, images)

    output = tmp_path / "review.html"
    monkeypatch.setattr(CasePredictor, "preprocess", counted)
    with pytest.raises(KeyboardInterrupt):
        write_review(load(shared[1]), request(tiny, output, held_out=held_out))
    assert not output.exists()
    shutil.copytree(reviewed.with_name("review_cases") / "held_out", tmp_path / "review_cases" / "held_out")
    monkeypatch.setattr(
        CasePredictor, "preprocess", lambda self, images: asked.append(images[0].name) or predict(self, images)
    )
    write_review(load(shared[1]), request(tiny, output, held_out=held_out))
    assert [name.removesuffix("_0000.nii.gz") for name in asked] == CASES
    whole = content_of(reviewed)
    assert content_of(output) == {**whole, "command": ""}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_changed_image_is_predicted_anew(tiny, shared, reviewed, tmp_path):
    shutil.copytree(reviewed.with_name("review_cases"), tmp_path / "review_cases")
    shutil.copytree(tiny.raw / "imagesUn", tmp_path / "images")
    changed = tmp_path / "images" / f"{CASES[0]}_0000.nii.gz"
    write_volume(np.random.default_rng(9).normal(size=SHAPE_ZYX).astype(np.float32), changed)
    asked = []
    model = load(shared[1])
    model.preprocess = lambda images: asked.append(images[0]) or CasePredictor.preprocess(model, images)
    write_review(model, request(tiny, tmp_path / "review.html", images=tmp_path / "images", pictures=0))
    assert asked == [changed]


def test_a_failed_case_is_named_and_the_others_are_done(tiny, shared, reviewed, tmp_path):
    shutil.copytree(reviewed.with_name("review_cases"), tmp_path / "review_cases")
    shutil.copytree(tiny.raw / "imagesUn", tmp_path / "images")
    damaged = tmp_path / "images" / "free_09_0000.nii.gz"
    damaged.write_bytes((tmp_path / "images" / f"{CASES[0]}_0000.nii.gz").read_bytes()[:-100])
    found = write_review(load(shared[1]), request(tiny, tmp_path / "review.html", images=tmp_path / "images"))
    assert "free_09" in str(found.failed[0])
    assert len(found.cases) == 4
    assert "free_09" in (tmp_path / "review.html").read_text()


def stock(folder: Path, target: Path) -> Path:
    """A copy of a model whose checkpoint says that the host's own trainer wrote it."""
    shutil.copytree(folder, target)
    file = target / "fold_all" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainer"}, file)
    return target


def test_a_stock_model_is_told_what_is_left_out(tiny, shared, tmp_path):
    shutil.copytree(tiny.raw / "imagesUn", tmp_path / "images")
    for case in CASES[2:]:
        (tmp_path / "images" / f"{case}_0000.nii.gz").unlink()
    model = load(stock(shared[1], tmp_path / "stock"))
    found = write_review(model, request(tiny, tmp_path / "review.html", images=tmp_path / "images", pictures=1))
    assert re.match("Disagreement is left out: .* Cases are ordered by unsure surface", found.left_out[0])
    assert re.match(r"Expected Dice is left out \(not calibrated\): .* there are 0", found.left_out[1])
    assert [one.uncertainty for one in found.cases] == [one.result.unsure for one in found.cases]
    assert "unsure: probability below" in (tmp_path / "review.html").read_text()


def test_validation_cases_of_a_fold_are_held_out_and_predicted_by_that_fold(tiny, shared, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(shared[1] / "fold_all", model / "fold_0")
    shutil.copytree(shared[1] / "fold_all", model / "fold_1")
    for file in shared[1].glob("*.json"):
        shutil.copy(file, model)
    (model / "fold_1" / "validation").mkdir()
    (model / "fold_1" / "validation" / "train_02.nii.gz").touch()
    loaded = load(model)
    held_out = build.find_held_out(loaded, request(tiny, tmp_path / "review.html"), tiny.raw, ".nii.gz")
    assert {case: one.fold for case, one in held_out.items()} == {"train_02": 1}
    every = loaded.predictor.list_of_parameters
    with loaded.of_fold(1):
        assert loaded.predictor.list_of_parameters == [every[1]]
    assert loaded.predictor.list_of_parameters is every
    assert Streams(loaded, 0, True, 1, 0).kinds == [*KINDS, "folds"]
    assert Streams(loaded, 1, False, 1, 0).kinds == KINDS


def refused(tiny: TinyDataset, model: CasePredictor, output: Path, **options: object) -> str:
    with pytest.raises(InputError) as error:
        write_review(model, request(tiny, output, **options))
    assert len(str(error.value).splitlines()) == 1
    assert "Fix: " in str(error.value)
    return str(error.value)


def test_bad_input_is_refused_before_anything_is_written(tiny, shared, tmp_path):
    model, output = load(shared[1]), tmp_path / "new" / "review.html"
    empty, page, table = tmp_path / "empty", tmp_path / "page.html", tmp_path / "table.csv"
    empty.mkdir()
    page.write_text("my notes")
    table.write_text("a,b")
    before = sorted(tmp_path.rglob("*"))
    assert "no unlabeled images" in refused(tiny, model, output, images=empty)
    assert "labeled case among the unlabeled" in refused(tiny, model, output, images=only_labeled(tiny, tmp_path))
    assert "a file that is no report would be replaced" in refused(tiny, model, page)
    assert "of no review would be replaced" in refused(tiny, model, table.with_suffix(".html"))
    assert "is no .html" in refused(tiny, model, tmp_path / "review.pdf")
    assert "no held-out cases" in refused(tiny, model, output, held_out=(empty, empty))
    shutil.rmtree(tmp_path / "one")
    assert sorted(tmp_path.rglob("*")) == before


def only_labeled(tiny: TinyDataset, folder: Path) -> Path:
    (folder / "one").mkdir()
    shutil.copy(tiny.raw / "imagesTr" / "train_00_0000.nii.gz", folder / "one")
    return folder / "one"


def test_a_model_of_another_data_set_is_refused(tiny, shared, tmp_path):
    model = load(shared[1])
    model.predictor.dataset_json = {**model.predictor.dataset_json, "labels": {"background": 0, "other": 1}}
    assert "model of another data set" in refused(tiny, model, tmp_path / "review.html")


def test_two_reviews_in_one_place_do_not_meet_and_others_are_not_mixed(tiny, shared, reviewed, tmp_path):
    model, output = load(shared[1]), tmp_path / "review.html"
    with exclusive(tmp_path / "review_cases"):
        assert "another process writes here" in refused(tiny, model, output)
    shutil.copytree(reviewed.with_name("review_cases"), tmp_path / "review_cases")
    assert "results of another review" in refused(tiny, model, output, seed=5)
    (tmp_path / "mine_cases").mkdir()
    (tmp_path / "mine_cases" / "thesis.txt").touch()
    assert "folder not empty" in refused(tiny, model, tmp_path / "mine.html")


@pytest.mark.parametrize("told", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("ITK ERROR: write")])
def test_a_full_disk_ends_the_run_in_one_line_and_leaves_no_half_case(tiny, shared, tmp_path, monkeypatch, told):
    def write_half(labels, file, properties):
        Path(file).write_bytes(b"half")
        raise told

    model = load(shared[1])
    monkeypatch.setattr(model.reader, "write_seg", write_half)
    monkeypatch.setattr(case_results.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    assert "disk full" in refused(tiny, model, tmp_path / "review.html")
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {"review_cases/review.json"}


def test_a_result_without_its_prediction_does_not_count(tiny, shared, reviewed, tmp_path):
    shutil.copytree(reviewed.with_name("review_cases"), tmp_path / "work")
    model = load(shared[1])
    scheme = build.read_label_scheme(tiny.raw / "dataset.json")
    measuring = Measuring(model, None, scheme, tmp_path / "work")
    assert read_result(measuring, CASES[0]).features
    measuring.prediction_file(CASES[0]).unlink()
    assert read_result(measuring, CASES[0]) is None


@pytest.mark.slow
def test_the_command_reviews_and_its_list_makes_a_data_set(tiny, shared, tmp_path):
    """One image is damaged: it is named, the others are done, and the exit code is 1."""
    with ExitStack() as restored:
        damaged = tiny.raw / "imagesUn" / f"{CASES[3]}_0000.nii.gz"
        restored.callback(damaged.write_bytes, damaged.read_bytes())
        damaged.write_bytes(damaged.read_bytes()[:-50])
        page = tmp_path / "review.html"
        model = ("-m", str(shared[1]), "-d", str(tiny.id), "-device", "cpu")
        options = ("--disable_tta", "--draws", "1", "--next", "1", "--pictures", "1")
        done = tiny.run("nnUNetv2_crossmatch_review", *model, "-o", str(page), *options, check=False)
        assert done.returncode == 1
        assert f"{CASES[3]}_0000.nii.gz" in done.stderr
        assert "Traceback" not in done.stderr
        assert "written: " in done.stdout
        (chosen,) = (one["case"] for one in content_of(page)["label_next"])
        assert f"label next: {chosen}" in done.stdout
        listed = tmp_path / "cases.txt"
        listed.write_text(f"{chosen}\n")
        tiny.run("nnUNetv2_crossmatch_pseudo_label", *model, "-o", "913", "--only", str(listed))
    made = tiny.root / "raw" / "Dataset913_TinyPseudo"
    assert (made / "labelsTr" / f"{chosen}.nii.gz").is_file()
    assert len(list((made / "imagesTr").iterdir())) == 5
    done = tiny.run("nnUNetv2_crossmatch_review", *model, "-o", str(page), "--draws", "0", check=False)
    assert done.returncode == 2
    assert "impossible number: --draws 0. Fix: give 1 or more" in done.stderr
