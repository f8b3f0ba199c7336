"""The files of this repository that git knows: a copy of them, and those that an installation holds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nnunetv2_crossmatch"


def tracked(*folders: str) -> list[str]:
    """Paths below the root."""
    return subprocess.check_output(["git", "ls-files", *folders], cwd=ROOT, text=True).splitlines()


def copy_tracked(target: Path) -> None:
    """Copy all of them, as they are in the working tree."""
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def packaged() -> set[str]:
    """Every file of the packages, by its place in an installation."""
    names = tracked(PACKAGE, "dataset_conversion")
    return {name if name.startswith(PACKAGE) else f"{PACKAGE}/{name}" for name in names}
