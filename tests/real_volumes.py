"""Subsampled copies of the real LA and ACDC volumes, which need not be present.

Limit: too coarse to evaluate a method.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
from fake_data import write_h5

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def subsampled_volumes(files: Sequence[Path], source: Path, folder: Path, step: tuple[slice, ...]) -> Path:
    """Copy the h5 ``files`` from ``source`` to ``folder``, with every n-th voxel along some axes."""
    for file in files:
        with h5py.File(file) as content:
            write_h5(folder / file.relative_to(source), **{name: content[name][step] for name in ("image", "label")})
    return folder
