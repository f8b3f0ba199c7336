"""The commands in the documents run as printed, one after the other; only the training is shortened."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import command_server
import fake_data
import pytest
import torch
from joined import join, joined_trainer, loaded_by
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from tracked_files import copy_tracked, packaged

from benchmarks.protocol import __main__ as protocol
from benchmarks.protocol import options
from nnunetv2_crossmatch.cli import demo as demo_command
from nnunetv2_crossmatch.cli import review, self_training, start_from
from nnunetv2_crossmatch.demo import run as demo
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.methods.names import settings_from_name

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import learning  # noqa: E402
import many_cases  # noqa: E402

SHORT = "nnUNetTrainerCrossMatch_1epochs_iters2_valiters1"
# Additions for a short run: the CPU, a small network, few workers.
SHELL = f"""
set -eo pipefail
nnUNetv2_train() {{ command nnUNetv2_train "$@" -device cpu; }}
nnUNetv2_predict() {{ command nnUNetv2_predict "$@" -device cpu --disable_tta -npp 0 -nps 0; }}
nnUNetv2_plan_and_preprocess() {{
    nnUNet_n_proc_DA=1 command nnUNetv2_plan_and_preprocess "$@" -c 3d_fullres -npfp 1 -np 1
    "{sys.executable}" -c "from pathlib import Path; from conftest import shrink_network; \\
shrink_network(Path('$nnUNet_preprocessed') / '$DATASET' / 'nnUNetPlans.json', ['3d_fullres'])"
}}
set -x
"""
# Benchmark command in the documents: options added here for a short run (the last of two equal options counts), and
# words that the output must contain.
TINY_PLANS = "--plans nnUNetPlans.json --repeats 1 -c"
BENCHMARKS = {
    "step.py --flops": ("--ways stacked", "3d 112 x 112 x 80, batch 2"),
    "step.py --small --more --profile": (
        f"--ways stacked_half {TINY_PLANS} 2d",
        "stacked_half         time: ",
    ),
    "loader.py -d 502 -c 2d --batch 8 --batches 25": (
        "-d 998 --batch 2 --batches 2 --workers 0 1",
        "an unlabeled sample costs",
    ),
    "method_cost.py -d 502 -c 2d -p nnUNetProtocolPlans --json cost.json": (
        "-d 998 -p nnUNetPlans --methods UAMT --steps 1",
        "in supervised steps ",
    ),
    "preprocess.py --cases 4 8 16 --shape 64 128 128": ("--cases 2 --shape 16 32 32 -np 1", "2 cases  ours"),
    "many_cases.py --dataset 998 --cases 200 2000": ("--cases 2 --processes 1", "2 cases  start, verify1"),
    "many_cases.py --dataset 998 --cases 100000 --copied": ("--cases 6 --processes 1", "6 cases  start, verify0"),
}
# Benchmarks for GPUs; they also run on a CPU, there without torch.compile, which takes minutes.
BENCHMARKS |= {
    "step.py --batch 2 4 8 16 32 64 128 --json fp32.json": (
        f"--batch 2 --ways stacked {TINY_PLANS} 2d",
        "amp False, compile False",
    ),
    "step.py --batch 2 4 8 16 32 64 128 --amp --profile --json amp.json": (
        f"--batch 2 --ways sequential {TINY_PLANS} 2d",
        "amp True, compile False",
    ),
    "step.py --plans nnUNetResEncUNetMPlans.json -c 3d_fullres --batch 2 4 8 16 --amp --profile": (
        "--batch 2 --ways stacked --repeats 1",
        "amp True, compile False",
    ),
    "step.py --amp --compile --profile --json compiled.json": (
        f"--ways stacked {TINY_PLANS} 2d",
        "amp True, compile True",
    ),
}
OTHER_TESTS = {
    "nnUNetv2_crossmatch_demo": demo_command.parser(),
    "nnUNetv2_crossmatch_review": review.parser(),
    "nnUNetv2_crossmatch_self_training": self_training.parser(),
    "nnUNetv2_crossmatch_start_from": start_from.parser(),
}
"""Commands that tests/demo, tests/review and tests/cli run, with the parsers that read what is printed."""
FENCED = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
COMPILER = {} if torch.cuda.is_available() else {"TORCH_COMPILE_DISABLE": "1"}


def documented_commands(document: Path, heading: str | None = None) -> str:
    """Shell commands in the indented code of ``document`` (or of its section ``heading``), with a short training."""
    text = document.read_text()
    if heading is not None:
        text = text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    blocks = re.findall(r"(?:^    .*\n?)+", FENCED.sub("", text), flags=re.MULTILINE)
    lines = [line[4:] for block in blocks if not block.startswith("    $nnUNet_raw/") for line in block.splitlines()]
    script = "\n".join(lines)
    for tokens in ("_execsequential", ""):
        script = re.sub(rf"nnUNetTrainerCrossMatch{tokens}(?!_?[A-Za-z0-9])", f"{SHORT}{tokens}", script)
    return script.replace("nnUNetTrainer_250epochs", "nnUNetTrainer_1epochs_iters2_valiters1")


def run_script(script: str, home: Path, dataset: str) -> str:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("nnUNet")},
        **command_server.variables(), "HOME": str(home), "PYTHONPATH": str(ROOT / "tests"),
        "DATASET": dataset, "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", SHELL + script], env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_getting_started(tiny_dataset, tmp_path):
    """All steps up to the export of a received model, in a new home folder, with the tiny data set."""
    script = documented_commands(ROOT / "docs" / "getting_started.md")
    data = f'cp -r "{tiny_dataset.raw}" "$nnUNet_raw/Dataset501_Heart"'
    script = script.replace("nnUNetv2_plan_and_preprocess", f"{data}\nnnUNetv2_plan_and_preprocess", 1)
    received = '\nmkdir received; cp -r "$nnUNet_results/Dataset501_Heart" received/Dataset501_LA\n'
    received += documented_commands(ROOT / "SECURITY.md")
    output = run_script(script + received, tmp_path, "Dataset501_Heart")
    assert all(words in output for words in ("Dice", "Jaccard", "95HD", "ASD", "blob", "Wilcoxon p"))
    raw = tmp_path / "nnunet" / "raw" / "Dataset501_Heart"
    assert (tmp_path / "predictions" / "scores.json").is_file()
    for exported in ("shared_model", "checked"):
        (stock,) = (raw / exported).rglob("checkpoint_final.pth")
        assert torch.load(stock, weights_only=False)["trainer_name"] == "nnUNetTrainer"


def test_scans_and_segmentations_become_a_data_set(tiny_dataset, tmp_path, monkeypatch):
    """The script of getting_started; names with blanks and dots, and what has no segmentation is unlabeled."""
    (script,) = FENCED.findall((ROOT / "docs" / "getting_started.md").read_text())
    names = {"imagesTr": "Anna 1.2 T1.nii.gz", "labelsTr": "Anna 1.2 T1.nii.gz", "imagesUn": "Bert.nii.gz"}
    for folder, name in names.items():
        target = tmp_path / ("segmentations" if folder == "labelsTr" else "scans") / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(next((tiny_dataset.raw / folder).glob("*.nii.gz")), target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    (tmp_path / "segmentations" / "Carl.nii.gz").touch()
    with pytest.raises(SystemExit, match=r"no scan for .*Carl\.nii\.gz"):
        exec(compile(script, "getting_started.md", "exec"), {})
    (tmp_path / "segmentations" / "Carl.nii.gz").unlink()
    exec(compile(script, "getting_started.md", "exec"), {})
    made = tmp_path / "raw" / "Dataset501_Heart"
    verify_dataset_integrity(str(made), 1)
    assert [file.name for file in (made / "imagesUn").iterdir()] == ["Bert_0000.nii.gz"]


def test_commands_of_the_start_page_are_those_of_getting_started():
    """Those commands run in the test above; only the three folders differ."""
    roots, *lines = documented_commands(ROOT / "docs" / "start.md", "## Your own data").splitlines()
    assert roots == "export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=..."
    started = iter(documented_commands(ROOT / "docs" / "getting_started.md").splitlines())
    assert len(lines) == 8
    assert all(line in started for line in lines)  # in this order


@pytest.mark.slow
def test_training_with_settings_in_its_name(tiny_copy):
    """Two pages print the same command; the trainer preprocesses the unlabeled cases and reports it."""
    printed = r"^    (nnUNetv2_train \S+ \S+ \S+ -tr \S+_100epochs_\S+)$"
    documents = (ROOT / "docs" / "choosing.md", ROOT / "docs" / "settings.md")
    (line,) = {found for file in documents for found in re.findall(printed, file.read_text(), re.MULTILINE)}
    _, _, configuration, fold, _, trainer = line.split()
    short = trainer.replace("100epochs", "1epochs_iters2_valiters1")
    cases = [f"train_{index:02d}" for index in range(4)]  # too few for the host's five folds
    splits = [{"train": cases[:3], "val": cases[3:]}]
    (tiny_copy.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    done = tiny_copy.run("nnUNetv2_train", str(tiny_copy.id), configuration, fold, "-tr", short, "-device", "cpu")
    assert "not preprocessed yet" in done.stdout
    (folder,) = tiny_copy.results.glob(f"{short}__*/fold_{fold}")
    assert (folder / "checkpoint_final.pth").is_file()
    assert (folder / "progress_crossmatch.png").stat().st_size > 10_000


@pytest.mark.slow
def test_torchrun_of_the_scaling_page(prepared_copy, monkeypatch):
    """Two processes on this machine's CPUs in place of two nodes with eight GPUs each.

    They end with the weights and the loss of one process on what their loaders give them.
    """
    text = (ROOT / "docs" / "scaling.md").read_text()
    script = re.search(r"^    (torchrun .*\\\n +.*)$", text, re.MULTILINE).group(1)
    trainer = f"{SHORT}_seed1_warmup0_batch4"
    here = {
        "--nnodes 2 --nproc_per_node 8": "--nnodes 1 --nproc_per_node 2",
        "HOST:29500": "127.0.0.1:0",
        "501 3d_fullres all -tr nnUNetTrainerCrossMatch": f"{prepared_copy.id} 2d all -tr {trainer} -device cpu",
    }
    for printed, short in here.items():
        assert printed in script
        script = script.replace(printed, short)
    result = prepared_copy.run("bash", "-c", script)
    assert "4 unlabeled cases" in result.stdout
    folder = next(prepared_copy.results.glob(f"{SHORT}*")) / "fold_all"
    assert (folder / "validation" / "summary.json").is_file()
    saved = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    batches = zip(*(loaded_by(rank, prepared_copy, trainer, 2) for rank in range(2)), strict=True)
    alone = joined_trainer(prepared_copy, trainer, monkeypatch)
    losses = [float(alone.train_step(join(parts))["loss"]) for parts in batches]
    assert saved["logging"]["train_losses"] == pytest.approx([sum(losses) / 2], rel=1e-4)
    for name, value in alone.network.state_dict().items():
        assert torch.allclose(saved["network_weights"][name], value, rtol=1e-4, atol=1e-5), name


def printed_commands(document: Path) -> list[list[str]]:
    """Words of every command in the indented code of ``document``; those of make are not among them."""
    joined = re.sub(r"\\\n", " ", document.read_text())
    lines = re.findall(r"^    ((?:export|pip|python|nnUNetv2_\w+) .*)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("name", ["README.md", "docs/choosing.md", "docs/unlabeled.md", "docs/commands.md"])
def test_other_pages_print_commands_that_a_test_runs(name):
    """Those of four pages, all of which this file runs; four commands have tests of their own, with other arguments."""
    pages = [ROOT / "docs" / f"{page}.md" for page in ("start", "getting_started", "settings", "protocols")]
    run = [command for page in pages for command in printed_commands(page)]
    for command in printed_commands(ROOT / name):
        if command[0] in OTHER_TESTS:
            assert OTHER_TESTS[command[0]].parse_args(command[1:])
        else:
            assert command in run


def printed_protocols() -> list[str]:
    """Arguments of every protocol in the documents, line by line."""
    texts = ((ROOT / "docs" / f"{name}.md").read_text().replace("\\\n", " ") for name in ("protocols", "results"))
    found = [re.findall(r"^    python -m benchmarks\.protocol (?!--queue)(.*)$", text, re.MULTILINE) for text in texts]
    assert all(len(lines) >= 4 for lines in found)
    return [line for lines in found for line in lines]


@pytest.mark.parametrize("line", printed_protocols(), ids=lambda line: line.split("--folder ")[1].split()[0])
def test_protocols_are_planned_as_printed(line, tmp_path, monkeypatch):
    """With measured step times --plan needs no data: every option is read and every run is laid out."""
    monkeypatch.chdir(tmp_path)
    Path("MyData").mkdir()
    times = ["--plan", "--step-seconds", "0.6", "0.1", "--prediction-seconds", "60"]
    planned = protocol.run_protocol(*options.read_request(options.parser(), [*shlex.split(line), *times]))
    assert "training time of" in planned
    assert "nnUNetTrainerCrossMatch" in planned


def test_printed_conversions_of_la_and_acdc(tmp_path):
    """Both commands as printed, on folders with a tiny volume for every published case."""
    data = ROOT / "dataset_conversion" / "data"
    la, acdc = (json.loads((data / f"{name}_splits.json").read_text()) for name in ("la", "acdc"))
    fake_data.write_la_h5(tmp_path / "2018LA_Seg_Training Set", [*la["train"], *la["test"]])
    fake_data.write_acdc_h5(tmp_path / "ACDC", [*acdc["train"], *acdc["val"], *acdc["test"]])
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
    roots = "export " + " ".join(f'nnUNet_{kind}="{tmp_path / kind}"' for kind in ("raw", "preprocessed", "results"))
    run_script(f"{roots}\n{documented_commands(ROOT / 'docs' / 'start.md', '## LA and ACDC')}", tmp_path, "")
    raw = tmp_path / "raw"
    assert len(list((raw / "Dataset501_LA" / "imagesUn").iterdir())) == 72
    assert len(list((raw / "Dataset502_ACDC" / "imagesUn").iterdir())) == 134


def test_every_documented_benchmark_is_tested():
    """Except the protocol, ``confidence.py`` and ``learning.py``, which have their own tests."""
    text = "\n".join(file.read_text() for file in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    printed = re.findall(r"^    (?:[A-Z_]+=\S+ )*python benchmarks/(?!confidence|learning)(.*)$", text, re.MULTILINE)
    assert sorted(printed) == sorted(BENCHMARKS)


def test_the_comparison_on_generated_volumes_trains_every_setting_with_every_seed(tmp_path, monkeypatch, capsys):
    """The line that is printed; the demo's test runs what it consists of."""
    (line,) = re.findall(r"^    python benchmarks/learning.py (.*)$", (ROOT / "docs" / "results.md").read_text(), re.M)
    trained = []

    def train(stages, name, trainer, epochs, device):
        trained.append(trainer)

    def scores(folder, name):
        return {"summary": {"blob": {measure: {"mean": len(trained) / 10} for measure in demo.COLUMNS}}}

    monkeypatch.setattr(demo, "prepare_dataset", lambda *_: None)
    monkeypatch.setattr(demo, "train_and_score", train)
    monkeypatch.setattr(demo, "read_scores", scores)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["learning.py", *shlex.split(line)])
    learning.main()
    runs = json.loads((tmp_path / "docs" / "results" / "phantom.json").read_text())["runs"]
    assert list(runs) == ["supervised", "CrossMatch", "CrossMatch warmup0", "CrossMatch tau0p5"]
    assert [run["trainer"] for seed in "012" for run in (row[seed] for row in runs.values())] == trained
    assert "CrossMatch tau0p5                0.8000   0.4000   0.4000 0.8000 1.2000" in capsys.readouterr().out


def test_the_comparison_on_generated_volumes_takes_several_methods_of_equal_length():
    size = learning.DEMO_SIZE
    names = learning.make_trainer_names(size, 1, ["BCP", "CAML"], ["", "warmup0p1"])
    assert list(names) == ["supervised", "BCP", "BCP warmup0p1", "CAML", "CAML warmup0p1"]
    each = [settings_from_name(trainer) for trainer in names.values()]
    assert {(one.epochs, one.iterations, one.seed) for one in each} == {(size.epochs, size.iterations, 1)}
    assert [one.trainer for one in each[1::2]] == ["nnUNetTrainerBCP", "nnUNetTrainerCAML"]
    assert [one.warmup for one in each[2::2]] == [0.1, 0.1]


@pytest.mark.slow
@pytest.mark.parametrize("printed", BENCHMARKS, ids=lambda line: "_".join(re.findall(r"\w+", line)[:4]))
def test_benchmarks(prepared_copy, printed, monkeypatch):
    shorter, words = BENCHMARKS[printed]
    assert words in run_benchmark(prepared_copy, f"{printed} {shorter}", monkeypatch)


def test_the_benchmark_of_many_cases_refuses_foreign_images(tmp_path):
    """Images of an earlier call are accepted."""
    (tmp_path / "case000001_0000.nii.gz").touch()
    many_cases.check_for_foreign_images(tmp_path)
    (tmp_path / "scan7_0000.nii.gz").touch()
    with pytest.raises(InputError, match=r"would be lost in .*scan7_0000"):
        many_cases.check_for_foreign_images(tmp_path)


def test_the_documented_command_of_the_gpu_tests():
    """Without a GPU each test is skipped with that reason."""
    (line,) = re.findall(r"^    pytest (-m gpu)$", (ROOT / "docs" / "performance.md").read_text(), re.MULTILINE)
    options = ["-q", "-rs", "-p", "no:cacheprovider", str(ROOT / "tests" / "training" / "test_gpu.py")]
    environment = {**os.environ, **command_server.variables()}
    command = ["python", "-m", "pytest", *line.split(), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "deselected" not in done.stdout
    assert torch.cuda.is_available() or "needs a CUDA device" in done.stdout


def run_benchmark(tiny, line, monkeypatch):
    """Run a benchmark in a folder that contains the plans, as the documents assume."""
    folder = tiny.root / "here"
    (folder / "docs" / "results").mkdir(parents=True)
    for plans in ("nnUNetPlans.json", "nnUNetResEncUNetMPlans.json"):
        shutil.copy(tiny.plans_file, folder / plans)
    monkeypatch.chdir(folder)
    if line.startswith("many_cases"):
        shutil.rmtree(tiny.raw / "imagesUn")
    # nnU-Net's planner takes the number of loader workers as a thread count and fails with 0.
    variables = {"nnUNet_n_proc_DA": "1", command_server.FORK_POOLS: "1", **COMPILER}
    output = tiny.run("bash", "-c", f"python {ROOT}/benchmarks/{line}", **variables).stdout
    written = re.search(r"--json (\S+)", line)
    assert written is None or json.loads((folder / written[1]).read_text())
    return output


@pytest.mark.slow
def test_installation_as_printed(tmp_path):
    """From a copy of the tracked files: every module, list and template is installed."""
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/start.md")]
    (line,) = {found for text in texts for found in re.findall(r"^    (pip install \S+)", text, re.MULTILINE)}
    copy_tracked(tmp_path)
    target = tmp_path / "target"
    command = [sys.executable, "-m", *line.split(), "--no-deps", "--target", str(target)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all((target / file).is_file() for file in packaged())
    assert (target / "bin" / "nnUNetv2_crossmatch_trainers").is_file()
