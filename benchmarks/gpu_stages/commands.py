"""Console commands of nnU-Net and of this package as small scripts, wherever both are installed.

    python -m benchmarks.gpu_stages.commands FOLDER

Writes FOLDER/bin. A package that was copied but not installed is installed into FOLDER/site first, without a network.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("nnunetv2", "nnunetv2_crossmatch")
SCRIPT = """#!{python}
import sys
from {module} import {function}
if __name__ == "__main__":  # worker processes import this file
    sys.exit({function}())
"""


def install(folder: Path) -> None:
    """Install this repository's package into ``folder``, nothing else, and let it be found in this process."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(ROOT)], check=True)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    work = Path(sys.argv[1])
    if not is_installed(PACKAGES[-1]):
        install(work / "site")
    (work / "bin").mkdir(exist_ok=True)
    for package in PACKAGES:
        for entry in distribution(package).entry_points.select(group="console_scripts"):
            script = work / "bin" / entry.name
            script.write_text(SCRIPT.format(python=sys.executable, module=entry.module, function=entry.attr))
            script.chmod(0o755)


if __name__ == "__main__":
    main()
