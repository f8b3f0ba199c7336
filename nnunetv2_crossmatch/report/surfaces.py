"""A 3D look: surfaces of reference and prediction side by side, coloured by how far the prediction is off.

Limit: draws masks that are handed over, for the eye; the numbers to quote are those of ``metrics``.
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
from skimage.measure import marching_cubes

from nnunetv2_crossmatch.evaluation.metrics import BoolArray, FloatArray, bounding_box
from nnunetv2_crossmatch.folders import atomic_write

RESOLUTION = 80  # steps of the drawn grid along the longest side
SMOOTHING = 0.7  # of such a step
# Told apart with any colour vision, and never so dark that shading could be taken for distance.
COLOURS = LinearSegmentedColormap.from_list("falls short, reaches too far", ["#6f51b5", "#ece9e4", "#e8760c"])
UNCOMPARED = (0.72, 0.72, 0.72, 1.0)
LIMIT_PERCENTILE = 98
TURN, TILT = np.radians(28), np.radians(18)  # of the viewer, who looks along y, to the side and upwards
LIGHT = (-0.45, 0.55, 0.7)  # from where: right, up, towards the viewer
AMBIENT = 0.58
PANEL_INCHES, TITLE_INCHES, SCALE_INCHES = 2.7, 0.35, 0.75


@dataclass(frozen=True)
class Surface:
    """A closed surface: ``vertices_mm`` float (n, 3) as (z, y, x), ``normals`` likewise, outward; ``faces`` int (m, 3).

    ``error_mm``, float (n,), is positive where the prediction reaches too far, negative where it falls short, and NaN
    where there is nothing to compare with.
    """

    vertices_mm: FloatArray
    normals: FloatArray
    faces: NDArray[np.int64]
    error_mm: FloatArray


def signed_distance(mask: BoolArray, spacing_mm: FloatArray) -> FloatArray:
    """Distance in mm from each voxel centre to the other side of the mask's border, negative inside; not for empty."""
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return outside - ndimage.distance_transform_edt(mask, sampling=spacing_mm)


def compared_surfaces(
    reference: BoolArray, prediction: BoolArray, spacing_mm: Sequence[float]
) -> tuple[Surface | None, Surface | None]:
    """Surfaces of both masks (z, y, x) in one frame; ``None`` for an empty mask.

    The masks are interpolated by shape (Raya and Udupa, IEEE TMI 1990): their signed distances are resampled to even
    steps and smoothed a little, so that thick slices do not look like stairs.
    """
    box = bounding_box(reference | prediction)
    fields = [_even_field(np.pad(mask[box], 2), np.asarray(spacing_mm, np.float64)) for mask in (reference, prediction)]
    return _surface(fields[0], fields[1], -1), _surface(fields[1], fields[0], 1)


@dataclass(frozen=True)
class _Field:
    """Signed distances in mm on a grid with these steps."""

    values: FloatArray
    steps_mm: FloatArray


def _even_field(mask: BoolArray, spacing: FloatArray) -> _Field | None:
    """Signed distance of ``mask``, smoothed and on about even steps; as it is if it would vanish by that."""
    if not mask.any():
        return None
    field = signed_distance(mask, spacing)
    lengths = (np.array(field.shape) - 1) * spacing
    step = max(float(spacing.min()), float(lengths.max()) / RESOLUTION)
    smooth = ndimage.gaussian_filter(field, SMOOTHING * step / spacing)
    even = ndimage.zoom(smooth, (lengths / step + 1) / field.shape, order=1)
    return _Field(even, lengths / (np.array(even.shape) - 1)) if even.min() < 0 else _Field(field, spacing)


def _surface(field: _Field | None, other: _Field | None, sign: int) -> Surface | None:
    """Where ``field`` is 0, with ``sign`` times the value of ``other`` there."""
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
        file: where to write; its ending chooses the format (.png, .webp).
        unit: what the colour bar calls the unit of ``spacing_mm``.
    """
    rows = {name: compared_surfaces(*masks, spacing_mm) for name, masks in pairs.items()}
    frames = [_frame(row) for row in rows.values()]
    limit = _limit([surface for row in rows.values() for surface in row if surface is not None])
    heights = [TITLE_INCHES + PANEL_INCHES * float(np.clip(height / width, 0.3, 1.0)) for _, (width, height) in frames]
    figure = Figure(figsize=(2 * PANEL_INCHES, sum(heights) + SCALE_INCHES))
    body, foot = figure.subfigures(2, 1, height_ratios=(sum(heights), SCALE_INCHES), squeeze=False)[:, 0]
    ratios = [part for height in heights for part in (TITLE_INCHES, height - TITLE_INCHES)]
    grid = body.subplots(2 * len(rows), 2, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for row, (name, surfaces) in enumerate(rows.items()):
        for column, (side, surface) in enumerate(zip(("reference", "prediction"), surfaces, strict=True)):
            title, axes = grid[2 * row : 2 * row + 2, column]
            title.set_axis_off()
            title.text(0.5, 0.4, f"{name}: {side}", ha="center", va="center", fontsize=12)
            _draw_surface(axes, surface, frames[row], Normalize(-limit, limit))
    body.subplots_adjust(0.02, 0, 0.98, 1, 0.06, 0)
    if limit:
        _draw_scale(foot, Normalize(-limit, limit), unit)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format=file.suffix.removeprefix("."), dpi=150)


def _limit(surfaces: Sequence[Surface]) -> float:
    """Distance that gets the strongest colour: nearly the largest one, as single spikes must not pale all the rest.

    At least 1, so that noise does not glow; 0 where nothing was compared.
    """
    errors = np.abs(np.concatenate([surface.error_mm for surface in surfaces] or [np.zeros(0)]))
    errors = errors[np.isfinite(errors)]
    return max(1.0, float(np.percentile(errors, LIMIT_PERCENTILE))) if errors.size else 0.0


def _seen(points_zyx: FloatArray) -> FloatArray:
    """Coordinates as the viewer has them: right, up, towards the viewer."""
    cos, sin = np.cos([TURN, TILT]), np.sin([TURN, TILT])
    right = (cos[0], sin[0], 0)
    up = (-sin[1] * sin[0], sin[1] * cos[0], cos[1])
    towards = (cos[1] * sin[0], -cos[1] * cos[0], sin[1])
    return points_zyx[:, ::-1] @ np.array([right, up, towards]).T


def _frame(surfaces: Sequence[Surface | None]) -> tuple[FloatArray, FloatArray]:
    """Middle and size (right, up) of what shows all of the surfaces, so that the panels of a row compare."""
    points = np.concatenate([_seen(surface.vertices_mm)[:, :2] for surface in surfaces if surface] or [np.eye(2)])
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, 1.06 * (high - low)


def _draw_surface(axes: Axes, surface: Surface | None, frame: tuple[FloatArray, FloatArray], norm: Normalize) -> None:
    axes.set_axis_off()
    if surface is None:
        axes.text(0.5, 0.5, "empty", transform=axes.transAxes, ha="center", fontsize=13, color="#8a8a8a")
        return
    axes.add_collection(_mesh(surface, norm))
    (x, y), (width, height) = frame
    axes.set_xlim(x - width / 2, x + width / 2)
    axes.set_ylim(y - height / 2, y + height / 2)
    axes.set_aspect("equal", anchor="C")


def _mesh(surface: Surface, norm: Normalize) -> PolyCollection:
    """The triangles that face the viewer, the far ones first."""
    corners = _seen(surface.vertices_mm)[surface.faces]
    normals = _seen(surface.normals)[surface.faces].mean(axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    order = np.argsort(corners[:, :, 2].mean(axis=1))
    order = order[normals[order, 2] > -0.1]
    error = surface.error_mm[surface.faces[order]].mean(axis=1)
    colours = np.where(np.isfinite(error)[:, None], COLOURS(norm(np.nan_to_num(error))), UNCOMPARED)
    light = normals[order] @ (np.array(LIGHT) / np.linalg.norm(LIGHT))
    colours[:, :3] *= (AMBIENT + (1 - AMBIENT) * np.clip(light, 0, 1))[:, None]
    # A hairline of its own colour closes the gaps that antialiasing leaves between triangles.
    return PolyCollection(list(corners[order, :, :2]), facecolors=colours, edgecolors=colours, linewidths=0.3)


def _draw_scale(figure: SubFigure, norm: Normalize, unit: str) -> None:
    axes = figure.add_axes((0.15, 0.68, 0.7, 0.14))
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_label(f"falls short  <  0  <  reaches too far  ({unit})", fontsize=11)
    axes.tick_params(labelsize=10)
