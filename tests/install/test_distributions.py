"""The wheel and the source distribution, built and installed as users do, in an environment outside of the clone.

Limit: minutes, and packages from the network: asked for by ``TEST_INSTALL=1`` (``make test-install``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.image import imread
from tracked_files import PACKAGE, copy_tracked, packaged

from nnunetv2_crossmatch import __version__

pytestmark = pytest.mark.skipif(not os.environ.get("TEST_INSTALL"), reason="minutes: needs TEST_INSTALL=1")


def run(*words: str | Path, **variables: str) -> str:
    """Output of a command that must succeed, run outside of the clone without the clone's paths."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "nnUNet", "VIRTUAL_ENV"))}
    done = subprocess.run(words, cwd="/", env=kept | variables, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with both, built from the files that git knows."""
    clone, built = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    copy_tracked(clone)
    run(sys.executable, "-m", "build", "--outdir", built, clone)
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, distributions: Path) -> Iterator[Path]:
    """Environment made by uv with the wheel and what it asks for, in the newest versions that it allows."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    run(uv(), "venv", "--quiet", "--seed", "--python", sys.executable, folder)
    wheel = next(distributions.glob("*.whl"))
    run(uv(), "pip", "install", "--quiet", "--python", folder / "bin" / "python", wheel)
    yield folder
    shutil.rmtree(folder)  # several GB


def uv() -> Path:
    """The uv of this environment."""
    return Path(sys.executable).with_name("uv")


def installed(environment: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file in the environment but compiled Python."""
    files = (path for path in environment.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(environment)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def ours(environment: Path) -> list[str]:
    """Every path of the environment, folders too, that carries the package's or its commands' name."""
    return sorted(str(path) for path in environment.rglob("*") if "crossmatch" in path.name)


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == packaged()


def test_both_carry_licence_and_version(distributions: Path) -> None:
    (wheel,) = distributions.glob(f"{PACKAGE}-{__version__}-py3-none-any.whl")
    (source,) = distributions.glob(f"{PACKAGE}-{__version__}.tar.gz")
    assert f"{PACKAGE}-{__version__}.dist-info/licenses/LICENSE" in zipfile.ZipFile(wheel).namelist()
    with tarfile.open(source) as archive:
        assert {f"{PACKAGE}-{__version__}/{name}" for name in ("LICENSE", "CHANGELOG.md", "CITATION.cff")} <= set(
            archive.getnames()
        )


def test_demo_runs_and_writes_nothing_into_the_environment(environment: Path, tmp_path: Path) -> None:
    before = installed(environment)
    table = run(environment / "bin" / "nnUNetv2_crossmatch_demo", "--quick", "-o", tmp_path / "demo.png")
    assert "Dice   Jaccard   95HD mm    ASD mm\nsupervised " in table
    assert "CrossMatch" in table
    assert imread(tmp_path / "demo.png").shape[1] > 500
    assert installed(environment) == before


def test_source_without_dependencies_beside_an_installed_host(environment: Path, distributions: Path) -> None:
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", PACKAGE)
    assert ours(environment) == []
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", next(distributions.glob("*.tar.gz")))
    assert "nnUNetTrainerCrossMatch" in run(environment / "bin" / "nnUNetv2_crossmatch_trainers", "--list")
    run(python, "-m", "pip", "check")
    run(uv(), "pip", "uninstall", "--quiet", "--python", python, PACKAGE)
    assert ours(environment) == []
