"""This repository's package as if it were installed, and the console commands of it and of nnU-Net as small scripts.

    python -m benchmarks.gpu_stages.commands FOLDER

Writes FOLDER/site and FOLDER/bin, without pip and network: what is measured is the code that lies here, whatever else
is installed.
"""

from __future__ import annotations

import configparser
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "nnunetv2_crossmatch"
SCRIPT = """#!{python}
import sys
from {module} import {function}
if __name__ == "__main__":  # worker processes import this file
    sys.exit({function}())
"""


def install(site: Path) -> None:
    """Copy the package, with the converters that lie beside it, and write what tells its version and commands."""
    shutil.copytree(ROOT / PACKAGE, site / PACKAGE, dirs_exist_ok=True)
    shutil.copytree(ROOT / "dataset_conversion", site / PACKAGE / "dataset_conversion", dirs_exist_ok=True)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version, scripts = setup["metadata"]["version"], setup["options.entry_points"]["console_scripts"]
    info = site / f"{PACKAGE}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[console_scripts]\n{scripts.strip()}\n")


def write_commands(folder: Path) -> None:
    """A script for each console command of both packages."""
    folder.mkdir(exist_ok=True)
    for package in ("nnunetv2", PACKAGE):
        for entry in distribution(package).entry_points.select(group="console_scripts"):
            script = folder / entry.name
            script.write_text(SCRIPT.format(python=sys.executable, module=entry.module, function=entry.attr))
            script.chmod(0o755)


def main() -> None:
    work = Path(sys.argv[1])
    install(work / "site")
    write_commands(work / "bin")


if __name__ == "__main__":
    main()
