"""Run a converter in this process or as the real command, on roots of the test's own.

Limit: helpers for tests; nothing is asserted here.
"""

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

MAIN: dict[str, Callable[[], None]] = {"LA": Dataset501_LA.main, "ACDC": Dataset502_ACDC.main}


@dataclass(frozen=True)
class Roots:
    """nnU-Net's root folders in ``root`` and the converters run on them."""

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
        MAIN[kind]()
        return self.raw / f"Dataset{dataset_id:03d}_{kind}"

    def refusal(self, kind: str, folder: Path, *arguments: str, dataset_id: int = 501) -> str:
        """The text of the error that the conversion must end with; nothing may be left of it."""
        with pytest.raises(InputError) as caught:
            self.convert(kind, folder, *arguments, dataset_id=dataset_id)
        left = [path.name for path in self.raw.iterdir() if "partial" in path.name]
        assert not left
        return str(caught.value)


def own_roots(root: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    """Empty root folders below ``root``, for this process."""
    make_roots(root)
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
    """Run the console command to its end."""
    line = command_line(kind, folder, *arguments)
    return subprocess.run(line, env=environment(roots), capture_output=True, text=True, timeout=120)


def environment(root: Path) -> dict[str, str]:
    """``os.environ`` with nnU-Net's root folders below ``root``."""
    folders = {f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed")}
    return {**os.environ, **folders, "OMP_NUM_THREADS": "1"}


def make_roots(root: Path) -> Path:
    """Create the empty root folders."""
    for kind in ("raw", "preprocessed"):
        (root / kind).mkdir(parents=True)
    return root


def read_back(file: Path) -> tuple[np.ndarray, list[float]]:
    """Array (z, y, x) and spacing (z, y, x) in mm as the host reads them."""
    array, properties = SimpleITKIO().read_images([str(file)])
    return array[0], [float(size) for size in properties["spacing"]]


def names(folder: Path) -> list[str]:
    """File names in ``folder``, sorted; empty if it does not exist."""
    return sorted(path.name for path in folder.glob("*"))
