"""The real LA and ACDC volumes beside the project, where they are at hand, with fewer voxels.

Limit: whole bodies in a part of the time; too coarse to say anything about a method.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
from fake_data import write_h5

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def thinned(files: Sequence[Path], source: Path, folder: Path, step: tuple[slice, ...]) -> Path:
    """The h5 ``files`` below ``source``, every n-th voxel along some axes: whole bodies in a part of the time."""
    for file in files:
        with h5py.File(file) as content:
            write_h5(folder / file.relative_to(source), **{name: content[name][step] for name in ("image", "label")})
    return folder
