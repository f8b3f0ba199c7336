"""3d pictures of the surfaces of reference and prediction, coloured by the signed distance between them.

Limit: draws smoothed masks for visual inspection; measures are computed in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import block_reduce, marching_cubes

from nnunetv2_crossmatch.evaluation.metrics import BoolArray, FloatArray, bounding_box
from nnunetv2_crossmatch.folders import atomic_write
from nnunetv2_crossmatch.report.text import plain_text

MAX_GRID_STEPS = 80  # steps of the resampled grid along the longest side
SMOOTHING_STEPS = 0.7  # standard deviation of the Gaussian filter, in steps
# Safe for colour blindness, and never so dark that shading could be mistaken for distance.
ERROR_COLOURMAP = LinearSegmentedColormap.from_list("falls short, reaches too far", ["#6f51b5", "#ece9e4", "#e8760c"])
NO_COMPARISON_COLOUR = (0.72, 0.72, 0.72, 1.0)
LIMIT_PERCENTILE = 98
AZIMUTH, ELEVATION = np.radians(28), np.radians(18)  # of the viewer, relative to the y axis
LIGHT_DIRECTION = (-0.45, 0.55, 0.7)  # towards the light: right, up, towards the viewer
AMBIENT_LIGHT = 0.58
PANEL_INCHES, TITLE_INCHES, SCALE_INCHES = 2.7, 0.35, 0.75


@dataclass(frozen=True)
class Surface:
    """A closed surface: ``vertices_mm`` float (n, 3) as (z, y, x), outward ``normals`` likewise, ``faces`` int (m, 3).

    ``error_mm``, float (n,), is positive where the prediction extends beyond the reference, negative where it falls
    short of it, and NaN if the other mask is empty.

    """

    vertices_mm: FloatArray
    normals: FloatArray
    faces: NDArray[np.int64]
    error_mm: FloatArray


def signed_distance(mask: BoolArray, spacing_mm: FloatArray) -> FloatArray:
    """Signed distance in mm from each voxel centre to the border of a mask that is not empty; negative inside."""
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return outside - ndimage.distance_transform_edt(mask, sampling=spacing_mm)


def extract_surfaces(
    reference: BoolArray, prediction: BoolArray, spacing_mm: Sequence[float]
) -> tuple[Surface | None, Surface | None]:
    """Surfaces of both masks (z, y, x) in one coordinate system; ``None`` for an empty mask.

    Shape-based interpolation (Raya and Udupa, IEEE TMI 1990): the signed distances are resampled to isotropic steps and
    smoothed, which removes the staircase of thick slices.
    """
    box = bounding_box(reference | prediction)
    spacing = np.asarray(spacing_mm, np.float64)
    block = _block_size(reference[box].shape, spacing)
    masks = (_subsample(mask[box], block) for mask in (reference, prediction))
    # A distance between voxel centres is half a voxel too long at the border; merged voxels must not add to this.
    excess = 0.5 * float((spacing * block).min() - spacing.min())
    fields = [_resampled_distance(np.pad(mask, 2), spacing * block, excess) for mask in masks]
    return _extract_surface(fields[0], fields[1], -1), _extract_surface(fields[1], fields[0], 1)


def _block_size(shape: tuple[int, ...], spacing: FloatArray) -> NDArray[np.int64]:
    """Voxels along each axis that are merged before the distance transform, which takes 59 bytes per voxel.

    The merged voxels are at most as large as the steps to which the distances are resampled.
    """
    longest = float((np.array(shape) * spacing).max())
    return np.maximum(1, np.floor(longest / MAX_GRID_STEPS / spacing)).astype(np.int64)


def _subsample(mask: BoolArray, block: NDArray[np.int64]) -> BoolArray:
    """Merge blocks of voxels by majority; a mask that would vanish keeps every block that it touches."""
    if (block == 1).all():
        return mask
    share = block_reduce(mask, tuple(block), np.mean)
    return share >= 0.5 if (share >= 0.5).any() else share > 0


@dataclass(frozen=True)
class _DistanceField:
    """Signed distances in mm on a grid with steps ``steps_mm``."""

    values: FloatArray
    steps_mm: FloatArray


def _resampled_distance(mask: BoolArray, spacing: FloatArray, excess: float = 0.0) -> _DistanceField | None:
    """Smoothed signed distance of ``mask``, reduced by ``excess``, on nearly isotropic steps.

    Not resampled if a small mask would vanish.
    """
    if not mask.any():
        return None
    field = signed_distance(mask, spacing)
    field = np.sign(field) * np.maximum(np.abs(field) - excess, 0) if excess else field
    lengths = (np.array(field.shape) - 1) * spacing
    step = max(float(spacing.min()), float(lengths.max()) / MAX_GRID_STEPS)
    smooth = ndimage.gaussian_filter(field, SMOOTHING_STEPS * step / spacing)
    even = ndimage.zoom(smooth, (lengths / step + 1) / field.shape, order=1)
    return (
        _DistanceField(even, lengths / (np.array(even.shape) - 1)) if even.min() < 0 else _DistanceField(field, spacing)
    )


def _extract_surface(field: _DistanceField | None, other: _DistanceField | None, sign: int) -> Surface | None:
    """Zero level set of ``field``; ``error_mm`` is ``sign`` times the value of ``other`` at each vertex."""
    if field is None:
        return None
    vertices, faces, normals, _ = marching_cubes(field.values, 0.0, spacing=tuple(field.steps_mm))
    error = np.full(len(vertices), np.nan)
    if other is not None:
        points = (vertices / other.steps_mm).T
        error = sign * ndimage.map_coordinates(other.values, points, order=1, mode="nearest")
    return Surface(vertices, -normals, faces, error)  # scikit-image gives those that point to lower values


def draw_surfaces(
    pairs: Mapping[str, tuple[BoolArray, BoolArray]], spacing_mm: Sequence[float], file: Path, unit: str = "mm"
) -> None:
    """Write a picture with a row per class: surface of the reference, surface of the prediction, coloured by distance.

    Args:
        pairs: class name to masks (reference, prediction), each boolean (z, y, x), two voxels or more along each axis.
        spacing_mm: voxel size (z, y, x).
        file: output file; the suffix selects the format (.png, .webp).
        unit: unit of ``spacing_mm`` for the colour bar.
    """
    rows = {name: extract_surfaces(*masks, spacing_mm) for name, masks in pairs.items()}
    extents = [_common_extent(row) for row in rows.values()]
    limit = _colour_limit([surface for row in rows.values() for surface in row if surface is not None])
    heights = [TITLE_INCHES + PANEL_INCHES * float(np.clip(height / width, 0.3, 1.0)) for _, (width, height) in extents]
    figure = Figure(figsize=(2 * PANEL_INCHES, sum(heights) + SCALE_INCHES))
    panels, footer = figure.subfigures(2, 1, height_ratios=(sum(heights), SCALE_INCHES), squeeze=False)[:, 0]
    ratios = [part for height in heights for part in (TITLE_INCHES, height - TITLE_INCHES)]
    grid = panels.subplots(2 * len(rows), 2, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for row, (name, surfaces) in enumerate(rows.items()):
        for column, (side, surface) in enumerate(zip(("reference", "prediction"), surfaces, strict=True)):
            title, axes = grid[2 * row : 2 * row + 2, column]
            title.set_axis_off()
            title.text(0.5, 0.4, f"{plain_text(name)}: {side}", ha="center", va="center", fontsize=12)
            _draw_surface(axes, surface, extents[row], Normalize(-limit, limit))
    panels.subplots_adjust(0.02, 0, 0.98, 1, 0.06, 0)
    if limit:
        _draw_colour_bar(footer, Normalize(-limit, limit), unit)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format=file.suffix.removeprefix("."), dpi=150)


def _colour_limit(surfaces: Sequence[Surface]) -> float:
    """Distance with the strongest colour: the 98th percentile, so that single outliers do not fade all other colours.

    At least 1, so that noise stays pale; 0 if no distance is defined.
    """
    errors = np.abs(np.concatenate([surface.error_mm for surface in surfaces] or [np.zeros(0)]))
    errors = errors[np.isfinite(errors)]
    return max(1.0, float(np.percentile(errors, LIMIT_PERCENTILE))) if errors.size else 0.0


def _project(points_zyx: FloatArray) -> FloatArray:
    """Coordinates relative to the viewer: right, up, towards the viewer."""
    cos, sin = np.cos([AZIMUTH, ELEVATION]), np.sin([AZIMUTH, ELEVATION])
    right = (cos[0], sin[0], 0)
    up = (-sin[1] * sin[0], sin[1] * cos[0], cos[1])
    towards = (cos[1] * sin[0], -cos[1] * cos[0], sin[1])
    return points_zyx[:, ::-1] @ np.array([right, up, towards]).T


def _common_extent(surfaces: Sequence[Surface | None]) -> tuple[FloatArray, FloatArray]:
    """Centre and size (right, up) of the box around all surfaces; the panels of a row share it."""
    points = np.concatenate([_project(surface.vertices_mm)[:, :2] for surface in surfaces if surface] or [np.eye(2)])
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, 1.06 * (high - low)


def _draw_surface(axes: Axes, surface: Surface | None, extent: tuple[FloatArray, FloatArray], norm: Normalize) -> None:
    axes.set_axis_off()
    if surface is None:
        axes.text(0.5, 0.5, "empty", transform=axes.transAxes, ha="center", fontsize=13, color="#8a8a8a")
        return
    axes.add_collection(_shaded_triangles(surface, norm))
    (x, y), (width, height) = extent
    axes.set_xlim(x - width / 2, x + width / 2)
    axes.set_ylim(y - height / 2, y + height / 2)
    axes.set_aspect("equal", anchor="C")


def _shaded_triangles(surface: Surface, norm: Normalize) -> PolyCollection:
    """Triangles that face the viewer, sorted from far to near."""
    corners = _project(surface.vertices_mm)[surface.faces]
    normals = _project(surface.normals)[surface.faces].mean(axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    order = np.argsort(corners[:, :, 2].mean(axis=1))
    order = order[normals[order, 2] > -0.1]
    error = surface.error_mm[surface.faces[order]].mean(axis=1)
    colours = np.where(np.isfinite(error)[:, None], ERROR_COLOURMAP(norm(np.nan_to_num(error))), NO_COMPARISON_COLOUR)
    light = normals[order] @ (np.array(LIGHT_DIRECTION) / np.linalg.norm(LIGHT_DIRECTION))
    colours[:, :3] *= (AMBIENT_LIGHT + (1 - AMBIENT_LIGHT) * np.clip(light, 0, 1))[:, None]
    # A thin edge in the face colour closes the gaps that antialiasing leaves between triangles.

    return PolyCollection(list(corners[order, :, :2]), facecolors=colours, edgecolors=colours, linewidths=0.3)


def _draw_colour_bar(figure: SubFigure, norm: Normalize, unit: str) -> None:
    axes = figure.add_axes((0.15, 0.68, 0.7, 0.14))
    bar = figure.colorbar(ScalarMappable(norm, ERROR_COLOURMAP), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_label(f"falls short  <  0  <  reaches too far  ({unit})", fontsize=11)
    axes.tick_params(labelsize=10)
