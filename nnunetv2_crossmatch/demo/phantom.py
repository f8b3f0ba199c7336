"""Randomly generated volumes that resemble the left atrium, with reference labels, in the LA h5 layout.

Limit: for the demo and tests; imitates the variation of such scans, not the physics of MRI.

Coordinates run from -1 to 1 along x (patient right to left), y (front to back) and z (feet to head). Every organ is a
signed field in these units, positive inside; a union is a maximum, and a soft edge is a sigmoid.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

Field = NDArray[np.float32]  # (x, y, z)
Grid = NDArray[np.float32]  # (3, x, y, z)

SHAPE = (64, 64, 24)
SPLITS_FILE = "splits.json"
EDGE_WIDTH = 0.025  # half-width of an organ's soft edge
LABELED_VEIN_LENGTH = 0.22  # the label includes the veins up to this distance from the atrium, as human readers label


@dataclass(frozen=True)
class Phantom:
    """One volume: ``image`` float32 with mean 0 and deviation 1, ``label`` uint8 (1: left atrium), both (x, y, z)."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]


def generate_case(rng: np.random.Generator, shape: tuple[int, int, int] = SHAPE) -> Phantom:
    """Draw one random heart: pose, shapes, contrast, bias field and noise vary from case to case."""
    grid = _deformed_grid(rng, shape)
    body = _ellipsoid(rng, grid, centre=(0.0, 0.08, -0.05), radii=(0.50, 0.30, 0.55))
    veins = _veins(rng, grid)
    mitral_plane = 0.45 - grid[0] * 0.6 + grid[1] * 0.9 + grid[2] * 0.35 + rng.normal(0, 0.08)
    body = np.minimum(body, mitral_plane)
    atrium = np.maximum(body, veins)
    label = (atrium > 0) & (body > -LABELED_VEIN_LENGTH)
    image = _degrade(rng, _paint_tissues(rng, grid, atrium))
    return Phantom(image, label.astype(np.uint8))


def write_dataset(
    folder: Path, labeled: int, unlabeled: int, test: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE
) -> Path:
    """Write ``<folder>/<case>/mri_norm2.h5`` for all cases and a splits file; return the splits file.

    The splits file has the keys of the published lists: ``train`` (labeled cases first), ``test`` and ``labeled``.
    Every h5 file contains ``image`` and ``label``, as in the public data; the converter selects the labels to use.
    """
    counts = {"train": labeled + unlabeled, "test": test}
    names = {part: [f"{part}{i:02d}" for i in range(count)] for part, count in counts.items()}
    for index, name in enumerate(names["train"] + names["test"]):
        _write_case(folder / name, generate_case(np.random.default_rng([seed, index]), shape))
    splits = folder / SPLITS_FILE
    splits.write_text(json.dumps({**names, "labeled": {str(labeled): names["train"][:labeled]}}, indent=2))
    return splits


def _write_case(folder: Path, case: Phantom) -> None:
    folder.mkdir(parents=True)
    with h5py.File(folder / "mri_norm2.h5", "w") as file:
        file.create_dataset("image", data=case.image, compression="gzip")
        file.create_dataset("label", data=case.label, compression="gzip")


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Field:
    """Gaussian random field with deviation 1; ``sigma`` is its smoothness as a share of each axis."""
    noise = gaussian_filter(rng.standard_normal(shape), [sigma * n for n in shape], mode="reflect")
    return (noise / noise.std()).astype(np.float32)


def _deformed_grid(rng: np.random.Generator, shape: tuple[int, int, int]) -> Grid:
    """Coordinates of all voxels after a random pose (shift, turn, size) and a smooth deformation, (3, x, y, z)."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    turn = Rotation.from_euler("zyx", rng.normal(0, [16, 10, 10]), degrees=True).as_matrix()
    size = rng.uniform(1.0, 1.5) * rng.uniform(0.92, 1.08, 3)
    posed = np.einsum("ij,jxyz->ixyz", turn / size[:, None], grid - _broadcast(rng.normal(0, 0.09, 3)))
    deformation = np.stack([_smooth_noise(rng, shape, 0.14) for _ in range(3)])
    return (posed + 0.055 * deformation).astype(np.float32)


def _broadcast(point: NDArray[np.float64]) -> NDArray[np.float64]:
    return point[:, None, None, None]


def _ellipsoid(
    rng: np.random.Generator, grid: Grid, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Field:
    jittered_centre = np.array(centre) + rng.normal(0, 0.04, 3)
    jittered_radii = np.array(radii) * rng.uniform(0.82, 1.18, 3)
    scaled = (grid - _broadcast(jittered_centre)) / _broadcast(jittered_radii)
    return ((1 - np.linalg.norm(scaled, axis=0)) * jittered_radii.min()).astype(np.float32)


def _tube(
    rng: np.random.Generator,
    grid: Grid,
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    radius: float,
) -> Field:
    a, b = (np.array(point) + rng.normal(0, 0.05, 3) for point in (start, end))
    along = np.einsum("i,ixyz->xyz", b - a, grid - _broadcast(a)) / np.dot(b - a, b - a)
    nearest = _broadcast(a) + np.clip(along, 0, 1) * _broadcast(b - a)
    return (radius * rng.uniform(0.8, 1.2) - np.linalg.norm(grid - nearest, axis=0)).astype(np.float32)


def _veins(rng: np.random.Generator, grid: Grid) -> Field:
    """Union of the pulmonary veins, two on each side; single veins are missing at random, as with common trunks."""
    ends = [(side, back, up) for side in (-1.1, 1.1) for back, up in ((0.40, -0.25), (0.30, 0.45))]
    drawn = [_tube(rng, grid, (0.3 * x, 0.1, 0.7 * z), (x, y, z), 0.095) for x, y, z in ends]
    kept = [vein for vein in drawn[1:] if rng.random() < 0.85]
    return np.maximum.reduce([drawn[0], *kept])


def _neighbouring_organs(rng: np.random.Generator, grid: Grid) -> list[Field]:
    """Blood-filled structures as bright as the atrium: ventricles, right atrium, aorta, other great vessels."""
    return [
        _ellipsoid(rng, grid, centre=(0.55, -0.62, -0.55), radii=(0.45, 0.40, 0.60)),
        _ellipsoid(rng, grid, centre=(-0.18, -0.85, -0.50), radii=(0.45, 0.30, 0.55)),
        _ellipsoid(rng, grid, centre=(-0.62, -0.42, -0.20), radii=(0.30, 0.34, 0.60)),
        _tube(rng, grid, (0.16, 0.62, -1.3), (0.12, 0.60, 1.3), 0.15),
        _tube(rng, grid, (-0.08, -0.45, 0.25), (-0.15, -0.50, 1.3), 0.18),
        _tube(rng, grid, (0.38, -0.60, 0.25), (0.30, -0.25, 1.2), 0.17),
        _tube(rng, grid, (-0.55, -0.25, 0.4), (-0.50, -0.30, 1.3), 0.11),
    ]


def _lungs(rng: np.random.Generator, grid: Grid) -> Field:
    sides = ((-1.15, 0.30, 0.0), (1.15, 0.30, 0.0))
    return np.maximum.reduce([_ellipsoid(rng, grid, centre=side, radii=(0.55, 0.80, 1.6)) for side in sides])


def _lung_vessels(rng: np.random.Generator, grid: Grid) -> Field:
    starts = [(side * rng.uniform(0.75, 1.1), rng.uniform(-0.2, 0.8), rng.uniform(-1, 1)) for side in (-1, 1) * 4]
    ends = [(x + rng.normal(0, 0.15), y + rng.normal(0, 0.2), z + 0.5) for x, y, z in starts]
    return np.maximum.reduce([_tube(rng, grid, *points, 0.05) for points in zip(starts, ends, strict=True)])


def _blend(image: Field, field: Field, level: float) -> Field:
    """``image`` with the intensity ``level`` where ``field`` is positive, with a soft edge."""
    share = 1 / (1 + np.exp(np.clip(-field / EDGE_WIDTH, -30, 30)))
    return (image * (1 - share) + level * share).astype(np.float32)


def _paint_tissues(rng: np.random.Generator, grid: Grid, atrium: Field) -> Field:
    """Image without artifacts: lungs, spine, heart wall, blood pools of similar intensity, bright scar."""
    tissue, blood = rng.uniform(0.30, 0.45), rng.uniform(0.70, 1.15)
    image = np.full(atrium.shape, tissue, np.float32) + 0.05 * _smooth_noise(rng, atrium.shape, 0.05)
    image = _blend(image, _lungs(rng, grid), 0.06)
    image = _blend(image, _lung_vessels(rng, grid), 0.9 * blood)
    spine = _ellipsoid(rng, grid, centre=(-0.16, 0.88, 0.0), radii=(0.30, 0.24, 2.0))
    image = _blend(_blend(image, spine + 0.05, 0.55), spine, rng.uniform(0.1, 0.35))
    neighbours = _neighbouring_organs(rng, grid)
    heart = np.maximum.reduce([*neighbours, atrium])
    image = _blend(image, heart + 0.05, rng.uniform(0.15, 0.35))  # wall and fat around the blood
    for field in neighbours:
        image = _blend(image, field, blood * rng.uniform(0.65, 1.35))
    image = _blend(image, atrium, blood * rng.uniform(0.75, 1.25))
    scar = np.abs(atrium) < 0.02
    return image + (0.35 * rng.random() * scar * (_smooth_noise(rng, scar.shape, 0.06) > 0.6)).astype(np.float32)


def _degrade(rng: np.random.Generator, image: Field) -> Field:
    """Add blur, coil bias and Rician noise; normalize to mean 0 and deviation 1, as in the public h5 files."""
    blurred = gaussian_filter(image, rng.uniform(0.3, 0.8))
    biased = blurred * np.exp(rng.uniform(0.1, 0.45) * _smooth_noise(rng, image.shape, 0.3))
    level = rng.uniform(0.05, 0.18)
    noisy = np.hypot(biased + level * rng.standard_normal(image.shape), level * rng.standard_normal(image.shape))
    return ((noisy - noisy.mean()) / noisy.std()).astype(np.float32)
