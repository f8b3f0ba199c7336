"""A tiny planned and preprocessed data set, built once per test session and shared by all tests and workers.

Limit: ellipsoids in noise, too small to learn from.
"""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import command_server
import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # how long an example takes says more of the machine than of the code
settings.load_profile("suite")


SLOW_TIMEOUT_S = 1800
"""Of tests that take up to 90 s on an idle machine; the others have pyproject.toml's. Both need pytest-timeout."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the tests that train, which take longest, half of them in each half of the list.

    Two workers of xdist begin with a half each, and so both end with short tests.
    """
    if config.pluginmanager.hasplugin("timeout"):
        for item in (item for item in items if item.get_closest_marker("slow")):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    count = sum(item.get_closest_marker("slow") is not None for item in items)
    slow, quick = items[:count], items[count:]
    middle = len(quick) // 2
    items[:] = [*slow[::2], *quick[:middle], *slow[1::2], *quick[middle:]]


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections, which would copy it in every fork."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the end of Python remove it all; Triton 3.9 prints a page about objects that it finds left."""
    gc.unfreeze()


SHAPE_ZYX = (24, 32, 32)
SPACING_XYZ = (1.0, 1.0, 1.5)


@dataclass(frozen=True)
class TinyDataset:
    """Folders of the tiny data set, and environment variables for subprocesses that use it."""

    root: Path
    name: str = "Dataset998_Tiny"
    id: int = 998

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.root / "results" / self.name

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / "nnUNetPlans.json"

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the package and nnU-Net: few processes, no compilation."""
        folders = {f"nnUNet_{kind}": str(self.root / kind) for kind in ("raw", "preprocessed", "results")}
        entry_point = Path(__file__).parents[1] / "nnunetv2_crossmatch" / "ext_trainers"
        few_processes = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
        # Tests run in parallel and nnU-Net uses all cores in each; spinning threads would slow the other tests down.
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        return {**folders, **few_processes, **threads, "nnUNet_extTrainer": str(entry_point)}

    @property
    def env(self) -> dict[str, str]:
        """``os.environ`` with :attr:`variables` and this interpreter's commands first in ``PATH``."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, **self.variables}

    def run(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a console command of nnU-Net or the package on this data set; show its output if it fails."""
        environment = {**self.env, **command_server.variables(), **variables}
        completed = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
        assert not check or completed.returncode == 0, f"{' '.join(arguments)}\n{completed.stdout}\n{completed.stderr}"
        return completed


def blob_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one bright ellipsoid: image float32 and labels uint8, both :data:`SHAPE_ZYX`."""
    random = np.random.default_rng(seed)
    centre = np.array(SHAPE_ZYX) / 2 + random.uniform(-3, 3, 3)
    radii = np.array(SHAPE_ZYX) * random.uniform(0.2, 0.3, 3)
    grid = np.moveaxis(np.indices(SHAPE_ZYX), 0, -1)
    labels = (((grid - centre) / radii) ** 2).sum(-1) <= 1
    image = random.normal(size=SHAPE_ZYX) * 0.3 + labels + 2
    return image.astype(np.float32), labels.astype(np.uint8)


def write_volume(array: np.ndarray, file: Path) -> None:
    """Write ``array`` (z, y, x) or (channel, z, y, x) to one file, with the spacing of the tiny data set."""
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing((*SPACING_XYZ, 1.0)[: array.ndim])
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def write_raw(tiny: TinyDataset) -> None:
    for seed, (prefix, part) in enumerate([("train", "Tr")] * 4 + [("free", "Un")] * 4 + [("test", "Ts")] * 2):
        image, labels = blob_case(seed)
        write_volume(image, tiny.raw / f"images{part}" / f"{prefix}_{seed:02d}_0000.nii.gz")
        if part != "Un":
            write_volume(labels, tiny.raw / f"labels{part}" / f"{prefix}_{seed:02d}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "blob": 1}}
    (tiny.raw / "dataset.json").write_text(json.dumps({**description, "numTraining": 4, "file_ending": ".nii.gz"}))


def shrink_network(plans_file: Path, names: Sequence[str] = ("2d", "3d_fullres")) -> None:
    """Set patch size 16, features 8 and 16, batch size 2: a training step takes milliseconds."""
    plans = json.loads(plans_file.read_text())
    for name in names:
        dimensions = int(name[0])
        configuration = plans["configurations"][name]
        configuration.update(patch_size=[16] * dimensions, batch_size=2)
        configuration["architecture"]["arch_kwargs"].update(
            n_stages=3,
            features_per_stage=[8, 16, 16],
            kernel_sizes=[[3] * dimensions] * 3,
            strides=[[1] * dimensions, [2] * dimensions, [2] * dimensions],
            n_conv_per_stage=[1, 1, 1],
            n_conv_per_stage_decoder=[1, 1],
        )
    plans_file.write_text(json.dumps(plans))


def build_tiny(tiny: TinyDataset) -> None:
    for kind in ("raw", "preprocessed", "results"):
        (tiny.root / kind).mkdir(parents=True)
    write_raw(tiny)
    plan_small(tiny, "2d", "3d_fullres")


def plan_small(tiny: TinyDataset, *configurations: str) -> None:
    workers = ("-npfp", "1", "-np", *("1" for _ in configurations))
    # nnU-Net's planner takes the number of loader workers as a thread count and fails with 0.
    plan = ("nnUNetv2_plan_and_preprocess", "-d", str(tiny.id), "-c", *configurations, *workers)
    tiny.run(*plan, nnUNet_n_proc_DA="1")
    shrink_network(tiny.plans_file)


def preprocess_copy(tiny: TinyDataset, source: TinyDataset) -> None:
    shutil.copytree(source.root, tiny.root)
    tiny.run("nnUNetv2_crossmatch_preprocess", "-d", str(tiny.id), "-np", "2")


def build_once(
    tmp_path_factory: pytest.TempPathFactory, worker: str, name: str, make: Callable[[TinyDataset], None]
) -> TinyDataset:
    """Data set ``name`` in the folder of the test session, built by the first test worker that needs it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker == "master" else base.parent
    tiny = TinyDataset(shared / name)
    with FileLock(shared / f"{name}.lock"):
        if not tiny.root.exists():
            unfinished = TinyDataset(shared / f"{name}_unfinished")
            shutil.rmtree(unfinished.root, ignore_errors=True)
            make(unfinished)
            unfinished.root.rename(tiny.root)
    return tiny


def copy_dataset(source: TinyDataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    shutil.copytree(source.root, folder / "tiny")
    tiny = TinyDataset(folder / "tiny")
    for name, value in tiny.variables.items():
        monkeypatch.setenv(name, value)
    return tiny


def renamed(tiny: TinyDataset, name: str) -> TinyDataset:
    """The data set under another name, as the host's planner would have written it."""
    plans = {**json.loads(tiny.plans_file.read_text()), "dataset_name": name}
    tiny.plans_file.write_text(json.dumps(plans))
    for folder in (tiny.raw, tiny.preprocessed):
        folder.rename(folder.with_name(name))
    return TinyDataset(tiny.root, name)


def assert_bar(output: str, title: str, cases: int) -> None:
    """The progress bar of that name in standard error has counted so many cases, and says so."""
    last = next(line for line in reversed(re.split(r"[\r\n]+", output)) if line.startswith(f"{title}: 100%|"))
    assert f" {cases}/{cases} [" in last
    assert re.search(r"case/s|s/case|\?case", last)


@contextmanager
def piped_output() -> Iterator[Callable[[], str]]:
    """What has gone into the pipe that is standard output inside the block; nothing does before it is flushed."""
    pipe = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(pipe, encoding="utf-8")):
        yield lambda: pipe.getvalue().decode()


def fork_pools_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pools that ``module`` would spawn be forked: a new interpreter imports for seconds."""
    forked = SimpleNamespace(get_context=lambda _: multiprocessing.get_context("fork"))
    monkeypatch.setattr(module, "multiprocessing", forked)


@pytest.fixture(autouse=True)
def forked_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked workers for the preprocessing in this process; those of the real command are spawned as ever."""
    from nnunetv2_crossmatch.data import case_preprocessing  # not before pytest has set what it sets

    fork_pools_of(case_preprocessing, monkeypatch)
    case_preprocessing.nnunet_objects.cache_clear()  # as spawned workers begin; data sets of tests share a name


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TinyDataset:
    """Four labeled, four unlabeled and two test volumes, planned and preprocessed for 2d and 3d_fullres.

    Read it only: it is shared by all tests. :func:`tiny_copy` is for tests that write.
    """
    return build_once(tmp_path_factory, worker_id, "tiny", build_tiny)


@pytest.fixture(scope="session")
def tiny_prepared(tiny_dataset: TinyDataset, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TinyDataset:
    """As :func:`tiny_dataset`, with the unlabeled cases preprocessed too. Read it only."""
    return build_once(tmp_path_factory, worker_id, "prepared", lambda tiny: preprocess_copy(tiny, tiny_dataset))


@pytest.fixture
def tiny_copy(tiny_dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    """A copy of :func:`tiny_dataset` for one test; sets the environment variables of this process."""
    return copy_dataset(tiny_dataset, tmp_path, monkeypatch)


@pytest.fixture
def prepared_copy(tiny_prepared: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    """A copy of :func:`tiny_prepared` for one test; sets the environment variables of this process."""
    return copy_dataset(tiny_prepared, tmp_path, monkeypatch)


@pytest.fixture
def empty_folders(tmp_path: Path) -> TinyDataset:
    """Three empty root folders, and environment variables with their paths."""
    tiny = TinyDataset(tmp_path / "empty")
    for kind in ("raw", "preprocessed", "results"):
        (tiny.root / kind).mkdir(parents=True)
    return tiny
