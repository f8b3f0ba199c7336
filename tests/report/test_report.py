from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import command_server
import numpy as np
import pytest
from PIL import Image
from segmentation_folders import ball, three_cases, write, write_dataset_json
from trained import write_model

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.evaluation.evaluate import EvaluationOptions
from nnunetv2_crossmatch.report import build
from nnunetv2_crossmatch.report.build import ReportRequest, prediction_names, write_report
from nnunetv2_crossmatch.report.case_pictures import (
    case_reader,
    draw_slice_picture,
    find_case_files,
    read_case,
    viewer_commands,
)

MAX_BYTES = 3_000_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE_SCRIPT = """<script>addEventListener("load", () => {
  const broken = [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length;
  const dead = [...document.querySelectorAll("a")].filter(a => !document.getElementById(a.hash.slice(1))).length;
  const found = {broken, dead, pictures: document.images.length, links: document.links.length,
                 page: document.documentElement.scrollWidth, window: innerWidth};
  parent.postMessage(JSON.stringify(found), "*");
});</script>"""
# In an iframe, since a headless window is at least 500 pixels wide.
FRAME_HTML = """<body><iframe src="probed.html" style="border: 0; height: 900px; width: {width}px"></iframe><script>
addEventListener("message", message => document.body.dataset.found = message.data)</script></body>"""


class ParsedPage(HTMLParser):
    """Links, anchors, image sources, tags and visible text of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [values["href"]] if tag == "a" else []
        self.anchors += [values["id"]] if "id" in values else []
        self.sources += [values[key] for key in ("src", "srcset") if key in values]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def make_request(root: Path, **changes: object) -> ReportRequest:
    options = EvaluationOptions(processes=1)
    return ReportRequest(root / "Dataset001_Balls" / "labelsTs", root / "predictions", options, **changes)


def write_images(root: Path, cases: str = "abc") -> Path:
    for case in cases:
        noise = np.random.default_rng(0).normal(size=ball().shape).astype(np.float32)
        write(root / "images" / f"{case}_0000.nii.gz", noise + ball())
    return root / "images"


def write_and_parse(report_request: ReportRequest, output: Path) -> ParsedPage:
    write_report(report_request, output)
    return ParsedPage(output.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full_report(tmp_path_factory):
    """A report with all sections: four cases, one with an empty prediction, images, comparison, model."""
    root = tmp_path_factory.mktemp("full")
    reference, predictions = three_cases(root)
    write(reference / "d.nii.gz", ball())
    write(predictions / "d.nii.gz", 0 * ball())
    for case in "abcd":
        write(root / "supervised" / f"{case}.nii.gz", ball(radius=4))
    images, model = write_images(root, "abcd"), write_model(root / "model")
    asked = make_request(
        root, other=root / "supervised", images=images, model=model, surfaces=1, command="the command line"
    )
    write_report(asked, root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def parsed_full_report(full_report):
    return ParsedPage(full_report.read_text(encoding="utf-8"))


def test_every_link_has_its_anchor(parsed_full_report):
    assert parsed_full_report.links
    assert {link.removeprefix("#") for link in parsed_full_report.links} <= set(parsed_full_report.anchors)


def test_anchors_are_unique(parsed_full_report):
    assert len(set(parsed_full_report.anchors)) == len(parsed_full_report.anchors)


def test_every_picture_is_embedded_and_valid(parsed_full_report):
    for source in parsed_full_report.sources:
        kind, content = source.split(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        picture.load()
        assert kind == f"data:image/{picture.format.lower()}"


def test_the_page_needs_no_script_and_no_network(full_report, parsed_full_report):
    assert "script" not in parsed_full_report.tags
    addresses = re.findall(r'\b(?:src|href|srcset)="([^"]*)"', full_report.read_text(encoding="utf-8"))
    assert {address[:5] if address[0] != "#" else "#" for address in addresses} == {"data:", "#"}


def test_cases_come_worst_first(parsed_full_report):
    order = re.findall(r"case-\d", " ".join(parsed_full_report.anchors))
    assert order == ["case-1", "case-2", "case-3", "case-4"]
    assert re.search(r"1 d body: prediction empty .* 2 c .* 3 b .* 4 a ", parsed_full_report.text)


def test_an_empty_prediction_is_noted_at_the_case_and_in_the_summary(parsed_full_report):
    assert parsed_full_report.text.count("body: prediction empty") == 2
    assert "Empty masks of body: 1 x prediction" in parsed_full_report.text


def test_the_worst_slice_is_marked(parsed_full_report):
    assert "most errors: predictions" in parsed_full_report.text


def test_settings_that_differ_from_the_default_are_marked(parsed_full_report):
    assert (
        "0.2 set share of the decoder distillation among the distillation losses paper, Table IV"
        in parsed_full_report.text
    )


def test_the_command_and_the_versions_are_printed(parsed_full_report):
    assert "the command line" in parsed_full_report.text
    assert "nnunetv2_crossmatch 0.1.0" in parsed_full_report.text


def test_the_comparison_needs_other_predictions(parsed_full_report, tmp_path):
    three_cases(tmp_path)
    assert "comparison" in parsed_full_report.anchors
    assert "comparison" not in write_and_parse(make_request(tmp_path), tmp_path / "report.html").anchors


def test_a_single_case_has_no_interval_which_is_said(tmp_path):
    for folder in three_cases(tmp_path):
        for case in "bc":
            (folder / f"{case}.nii.gz").unlink()
    other = tmp_path / "other"
    write(other / "a.nii.gz", np.roll(ball(), 1, axis=2))
    found = write_and_parse(make_request(tmp_path, other=other, surfaces=0), tmp_path / "report.html")
    assert found.text.count("no interval: fewer than two cases") == 3
    assert re.search(r"against other: \+0\.\d{4} [^(]", found.text)
    assert "- to -" not in found.text


def test_contours_are_drawn_without_images(tmp_path):
    three_cases(tmp_path)
    found = write_and_parse(make_request(tmp_path, surfaces=0), tmp_path / "report.html")
    assert "the contours stand on black" in found.text
    assert len(found.sources) > 3 * 5


def test_only_the_requested_number_of_cases_is_drawn(tmp_path):
    three_cases(tmp_path)
    found = write_and_parse(make_request(tmp_path, pictures=1), tmp_path / "report.html")
    assert [anchor for anchor in found.anchors if anchor.startswith("case-")] == ["case-1"]


def test_names_are_escaped(tmp_path):
    three_cases(tmp_path)
    write_dataset_json(tmp_path / "Dataset001_Balls", {"background": 0, "<b>bold</b>": 1})
    assert "<b>bold</b>" in write_and_parse(make_request(tmp_path, surfaces=0), tmp_path / "report.html").text


def test_a_case_with_two_empty_masks_comes_last(tmp_path):
    reference, predictions = three_cases(tmp_path)
    for folder in (reference, predictions):
        write(folder / "0.nii.gz", 0 * ball())
    found = write_and_parse(make_request(tmp_path), tmp_path / "report.html")
    assert "4 0 body: prediction and reference empty –" in found.text


def test_a_case_that_cannot_be_drawn_costs_its_own_picture_only(tmp_path, monkeypatch):
    three_cases(tmp_path)
    draw = build.draw_slices

    def fail_for_b(case):
        if case.title == "b":
            raise MemoryError("too large")
        return draw(case)

    monkeypatch.setattr(build, "draw_slices", fail_for_b)
    found = write_and_parse(make_request(tmp_path, surfaces=0), tmp_path / "report.html")
    assert "not drawn: MemoryError: too large" in found.text
    assert [anchor for anchor in found.anchors if anchor.startswith("case-")] == ["case-1", "case-3"]
    assert {link.removeprefix("#") for link in found.links} <= set(found.anchors)


def test_single_slices_are_drawn(tmp_path):
    for folder in ("Dataset001_Balls/labelsTs", "predictions"):
        write(tmp_path / folder / "a.nii.gz", ball()[6:7])
    write_dataset_json(tmp_path / "Dataset001_Balls")
    assert "slice 1 of 1" in write_and_parse(make_request(tmp_path), tmp_path / "report.html").text


def test_colour_images_are_shown_in_colour(tmp_path):
    """The image is blue, unlike all contours."""
    for folder in ("labelsTs", "predictions", "images"):
        (tmp_path / folder).mkdir()
    for folder in ("labelsTs", "predictions"):
        Image.fromarray(ball()[6]).save(tmp_path / folder / "a.png")
    blue = np.zeros((*ball()[6].shape, 3), np.uint8)
    blue[2:-2, 2:-2, 2] = 200
    Image.fromarray(blue).save(tmp_path / "images" / "a_0000.png")
    write_dataset_json(tmp_path, file_ending=".png")
    case_files = find_case_files(tmp_path / "labelsTs", {"p": tmp_path / "predictions"}, tmp_path / "images")
    picture = read_case("a", case_files, case_reader(case_files))
    assert picture.image.shape == (1, *blue.shape)
    tile = base64.b64decode(draw_slice_picture(picture, 0).split(",")[1])
    red, _, seen_blue = np.asarray(Image.open(io.BytesIO(tile)).convert("RGB")).mean((0, 1))
    assert seen_blue > 2 * red


def test_converted_public_data_are_compared_with_published_results(tmp_path):
    three_cases(tmp_path)
    case = {"role": "labeled", "patient": "x", "spacing_is_nominal": False}
    record = {"command": "nnUNetv2_crossmatch_convert_LA -d 1", "cases": {"x": case, "a": {**case, "role": "test"}}}
    (tmp_path / "Dataset001_Balls" / "conversion.json").write_text(json.dumps(record))
    found = write_and_parse(make_request(tmp_path, pictures=0), tmp_path / "report.html")
    assert "Scored here, by role in the conversion: 1 test, 2 unknown" in found.text


def test_twenty_cases_fit_in_three_megabytes(tmp_path):
    """Measured with four cases of noise, which compresses worse than images."""
    rng = np.random.default_rng(0)
    for i in range(4):
        labels = ball((15, 48, 48), 12, (30, 96, 96))
        write(tmp_path / "Dataset001_Balls" / "labelsTs" / f"{i}.nii.gz", labels)
        for folder in ("predictions", "other"):
            write(tmp_path / folder / f"{i}.nii.gz", np.roll(labels, rng.integers(-5, 6, 3), (0, 1, 2)))
        write(tmp_path / "images" / f"{i}_0000.nii.gz", rng.normal(size=labels.shape).astype(np.float32))
    write_dataset_json(tmp_path / "Dataset001_Balls")
    asked = make_request(tmp_path, other=tmp_path / "other", images=tmp_path / "images")
    write_report(asked, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size <= MAX_BYTES / 5


def test_all_problems_are_reported_in_one_run(tmp_path):
    _, predictions = three_cases(tmp_path)
    (predictions / "a.nii.gz").unlink()
    model = write_model(tmp_path / "model")
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"cut off")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError) as error:
        write_report(make_request(tmp_path, model=model), tmp_path / "report.html")
    assert {problem.what for problem in error.value.problems} == {
        "prediction missing", "checkpoint damaged", "report not written"
    }  # fmt: skip


def test_every_missing_image_is_named(tmp_path):
    three_cases(tmp_path)
    images = write_images(tmp_path, "a")
    with pytest.raises(InputError) as error:
        write_report(make_request(tmp_path, images=images), tmp_path / "report.html")
    assert [problem.where.name for problem in error.value.problems] == ["b_0000.nii.gz", "c_0000.nii.gz"]


def test_an_image_on_another_grid_is_refused(tmp_path):
    three_cases(tmp_path)
    images = write_images(tmp_path)
    write(images / "b_0000.nii.gz", ball(shape=(5, 6, 7)).astype(np.float32))
    with pytest.raises(InputError, match=r"shape.*differs from the reference"):
        write_report(make_request(tmp_path, images=images), tmp_path / "report.html")


def test_a_failed_run_keeps_the_old_report(tmp_path):
    three_cases(tmp_path)
    (tmp_path / "report.html").write_text("before")
    images = write_images(tmp_path)
    (images / "c_0000.nii.gz").write_bytes((images / "c_0000.nii.gz").read_bytes()[:-200])
    with pytest.raises(InputError):
        write_report(make_request(tmp_path, images=images), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "before"


def test_predictions_are_named_by_the_differing_part_of_their_paths(tmp_path):
    folders = tmp_path / "crossmatch" / "preds", tmp_path / "supervised" / "preds"
    assert list(prediction_names(*folders)) == ["crossmatch/preds", "supervised/preds"]


def test_comparing_a_folder_with_itself_is_refused(tmp_path):
    with pytest.raises(InputError, match="same folder"):
        prediction_names(tmp_path, tmp_path / "x" / "..")


def test_labels_are_drawn_with_the_numbers_of_the_reference(tmp_path):
    """Predictions with other label numbers and other file names than the reference, as the scores read them."""
    reference, predictions = three_cases(tmp_path)
    write_dataset_json(predictions, {"background": 0, "body": 3})
    for file in sorted(predictions.glob("*.nii.gz")):
        file.unlink()
        write(file.with_name(file.name.replace(".", "_pred.", 1)), 3 * ball())
    options = EvaluationOptions(suffixes=("_pred",))
    case_files = find_case_files(reference, {"p": predictions}, None, options=options)
    picture = read_case("a", case_files, case_reader(case_files))
    np.testing.assert_array_equal(picture.predictions["p"], picture.reference)


@pytest.mark.parametrize("name", ["$x$ $", "a|b", "_hidden", "=1+1", "two\nlines"])
def test_any_class_and_folder_name_is_drawn(tmp_path, name):
    reference, predictions = three_cases(tmp_path)
    write_dataset_json(reference.parent, {"background": 0, name: 1})
    compared = [shutil.copytree(predictions, tmp_path / part / name) for part in ("first", "second")]
    asked = ReportRequest(
        reference, compared[0], EvaluationOptions(processes=1), other=compared[1], pictures=1, surfaces=1
    )
    assert name.split()[0] in write_and_parse(asked, tmp_path / "report.html").text


def test_viewer_commands_quote_spaces(tmp_path):
    folder = tmp_path / "my data"
    reference, predictions = three_cases(folder)
    commands = viewer_commands("a", find_case_files(reference, {"p": predictions}, folder))
    assert shlex.split(commands["ITK-SNAP 4"])[2] == str(folder / "a_0000.nii.gz")
    assert len(shlex.split(commands["3D Slicer"])) == 3


def run_command(*arguments: object) -> subprocess.CompletedProcess:
    command = ["nnUNetv2_crossmatch_report", *map(str, arguments)]
    environment = {**os.environ, **command_server.variables()}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_command_writes_the_file_and_prints_its_path(tmp_path):
    reference, predictions = three_cases(tmp_path)
    output = tmp_path / "new folder" / "report.html"
    result = run_command("-r", reference, "-p", predictions, "-o", output, "-np", 1, "--pictures", 1, "--surfaces", 0)
    assert result.returncode == 0, result.stderr
    assert f"written: {output}" in result.stdout
    assert "nnUNetv2_crossmatch_report -r" in output.read_text(encoding="utf-8")


def test_the_command_refuses_in_one_line_with_exit_code_2(tmp_path):
    result = run_command("-r", tmp_path, "-p", tmp_path, "-o", tmp_path / "report.html", "--surfaces", -1)
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["error: impossible number of pictures: --surfaces -1. Fix: give 0 or more"]


def open_in_chromium(file: Path, folder: Path, width: int) -> tuple[dict[str, int], str]:
    """Results of a script in a copy of the page with this width, and the browser's console output."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    text = file.read_text(encoding="utf-8")
    (folder / "probed.html").write_text(
        policy.sub("", text).replace("</body>", f"{PROBE_SCRIPT}</body>"), encoding="utf-8"
    )
    (folder / "frame.html").write_text(FRAME_HTML.format(width=width), encoding="utf-8")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync hide-scrollbars dump-dom virtual-time-budget=9000 "
    flags += "enable-logging=stderr"
    command = [CHROMIUM, *(f"--{flag}" for flag in flags.split()), f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,900", (folder / "frame.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-found="([^"]*)"', result.stdout)
    assert found, result.stderr
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found[1].replace("&quot;", '"')), "\n".join(console)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_whole_page(full_report, tmp_path, width):
    found, console = open_in_chromium(full_report, tmp_path, width)
    assert console == ""
    assert found["broken"] == found["dead"] == 0
    assert found["pictures"] > 20
    assert found["page"] <= found["window"] == width


def test_what_the_reader_warns_of_in_images_is_told_once_by_the_report_itself(tmp_path, capfd):
    three_cases(tmp_path)
    images = write_images(tmp_path)
    for file in images.iterdir():
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[296:300] = struct.pack("<f", 5.0)  # the third row of the sform gets another scale
        content[254:256] = struct.pack("<h", 1)
        file.write_bytes(gzip.compress(bytes(content)))
    write_report(make_request(tmp_path, images=images, surfaces=0), tmp_path / "report.html")
    lines = [line for line in capfd.readouterr().err.splitlines() if "sform" in line or "WARNING" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("warning: ")
    assert "3 files, the first is" in lines[0]
