"""Helpers that run a converter in this process or as a console command, on the root folders of one test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_crossmatch.dataset_conversion import Dataset501_LA, Dataset502_ACDC
from nnunetv2_crossmatch.errors import InputError

MAIN_FUNCTIONS: dict[str, Callable[[], None]] = {"LA": Dataset501_LA.main, "ACDC": Dataset502_ACDC.main}


@dataclass(frozen=True)
class Roots:
    """nnU-Net's root folders in ``root``, and conversions into them."""

    root: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed"

    def convert(self, kind: str, folder: Path, *arguments: str, dataset_id: int = 501) -> Path:
        """Convert in this process, one worker; returns the raw data set's folder."""
        command = [f"convert_{kind}", "-i", str(folder), "-d", str(dataset_id), "-np", "1", *arguments]
        self.monkeypatch.setattr(sys, "argv", command)
        MAIN_FUNCTIONS[kind]()
        return self.raw / f"Dataset{dataset_id:03d}_{kind}"

    def expect_error(self, kind: str, folder: Path, *arguments: str, dataset_id: int = 501) -> str:
        """Text of the error of a conversion that must fail and must leave no partial files."""
        with pytest.raises(InputError) as caught:
            self.convert(kind, folder, *arguments, dataset_id=dataset_id)
        left = [path.name for path in self.raw.iterdir() if "partial" in path.name]
        assert not left
        return str(caught.value)


def set_root_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    """Create empty root folders in ``root`` and set the environment variables of this process."""
    make_root_folders(root)
    monkeypatch.delenv("nnUNet_results", raising=False)
    for kind in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(root / kind))
    return Roots(root, monkeypatch)


def command_line(kind: str, folder: Path, *arguments: str) -> list[str]:
    """The installed console command, for ``subprocess``."""
    script = shutil.which(f"nnUNetv2_crossmatch_convert_{kind}", path=str(Path(sys.executable).parent))
    assert script is not None, "the package is not installed"
    return [script, "-i", str(folder), *arguments]


def run_command(kind: str, roots: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the console command and wait for it."""
    line = command_line(kind, folder, *arguments)
    return subprocess.run(line, env=environment(roots), capture_output=True, text=True, timeout=120)


def environment(root: Path) -> dict[str, str]:
    """``os.environ`` with nnU-Net's root folders below ``root``."""
    folders = {f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed")}
    return {**os.environ, **folders, "OMP_NUM_THREADS": "1"}


def make_root_folders(root: Path) -> Path:
    """Create the empty root folders."""
    for kind in ("raw", "preprocessed"):
        (root / kind).mkdir(parents=True)
    return root


def read_with_nnunet(file: Path) -> tuple[np.ndarray, list[float]]:
    """Array (z, y, x) and spacing (z, y, x) in mm, read with nnU-Net's reader."""
    array, properties = SimpleITKIO().read_images([str(file)])
    return array[0], [float(size) for size in properties["spacing"]]


def file_names(folder: Path) -> list[str]:
    """File names in ``folder``, sorted; empty if it does not exist."""
    return sorted(path.name for path in folder.glob("*"))
