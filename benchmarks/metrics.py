"""Measures of one structure: time compared with MedPy and with a distance transform, and equality with MedPy.

    python benchmarks/metrics.py            table of medians: LA crops, and the first crop in a 640 x 640 x 88 scan
    python benchmarks/metrics.py --check    equality on every LA and ACDC volume with every alteration (minutes)

Needs the extra ``test`` (MedPy) and the real volumes (``--data``). All methods run in one process on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from medpy.metric import binary
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from nnunetv2_crossmatch.evaluation.metrics import border_mask, bounding_box, compute_measures, hd95_and_asd

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SCAN_SHAPE = (640, 640, 88)
LA_SPACING_MM = (0.625, 0.625, 0.625)
ACDC_SPACING_MM = (10.0, 1.25, 1.5)  # plausible values, all different; the files contain no spacing
CROP_MARGIN = 12

Mask = NDArray[np.bool_]
Numbers = tuple[float, ...]


def shift_mask(mask: Mask) -> Mask:
    return np.roll(mask, (2, -3, 1), (0, 1, 2))


def erode_mask(mask: Mask) -> Mask:
    smaller = ndimage.binary_erosion(mask)
    return smaller if smaller.any() else mask


def dilate_mask(mask: Mask) -> Mask:
    return ndimage.binary_dilation(mask, iterations=2)


def add_false_positive(mask: Mask) -> Mask:
    changed = mask.copy()
    changed[:3, :6, -6:] = True
    return changed


def add_noise(mask: Mask) -> Mask:
    return mask ^ (np.random.default_rng(0).random(mask.shape) < 0.02)


ALTERATIONS: tuple[Callable[[Mask], Mask], ...] = (shift_mask, erode_mask, dilate_mask, add_false_positive)


def read_labels(data: Path, pattern: str, step: int = 1) -> Iterator[NDArray[np.uint8]]:
    for path in sorted(data.glob(pattern))[::step]:
        with h5py.File(path) as file:
            yield file["label"][:]


def real_masks(data: Path, la_step: int = 1, acdc_step: int = 1) -> Iterator[tuple[Mask, Numbers]]:
    """Every class of every ``step``-th volume with its spacing, cropped with a margin for the alterations."""
    for label in read_labels(data, "la_h5/*/mri_norm2.h5", la_step):
        yield (label == 1)[bounding_box(label == 1, CROP_MARGIN)], LA_SPACING_MM
    for label in read_labels(data, "acdc_h5/*.h5", acdc_step):
        masks = (label == value for value in (1, 2, 3))
        yield from ((mask[bounding_box(mask, CROP_MARGIN)], ACDC_SPACING_MM) for mask in masks if mask.any())


def compute_medpy_measures(prediction: Mask, reference: Mask, spacing_mm: Numbers | None = None) -> Numbers:
    """Dice, Jaccard, 95HD and ASD; with a spacing the distances in mm as well."""
    overlaps = binary.dc(prediction, reference), binary.jc(prediction, reference)
    units = (None,) if spacing_mm is None else (None, spacing_mm)
    distances = ((binary.hd95(prediction, reference, unit), binary.asd(prediction, reference, unit)) for unit in units)
    return (*overlaps, *(value for pair in distances for value in pair))


def compute_with_distance_transform(prediction: Mask, reference: Mask) -> tuple[float, float]:
    """95HD and ASD from two distance transforms of the box, the alternative to the k-d tree."""
    box = bounding_box(prediction | reference)
    first, second = border_mask(prediction[box]), border_mask(reference[box])
    to_reference = ndimage.distance_transform_edt(~second)[first]
    return hd95_and_asd(to_reference, ndimage.distance_transform_edt(~first)[second])


def difference_to_medpy(prediction: Mask, reference: Mask, spacing_mm: Numbers) -> float:
    """Largest absolute difference to MedPy over all six measures."""
    found = compute_measures(prediction, reference, spacing_mm)
    ours = found.dice, found.jaccard, found.hd95_voxel, found.asd_voxel, found.hd95_mm, found.asd_mm
    return float(np.abs(np.subtract(ours, compute_medpy_measures(prediction, reference, spacing_mm))).max())


def largest_difference_to_medpy(masks: Iterator[tuple[Mask, Numbers]]) -> tuple[float, int]:
    """Largest :func:`difference_to_medpy` over all masks and alterations, and how many pairs were compared."""
    found = [difference_to_medpy(alter(mask), mask, spacing) for mask, spacing in masks for alter in ALTERATIONS]
    return float(np.max(found)), len(found)  # not max(), which loses NaN


def median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def embed_in_scan(mask: Mask) -> Mask:
    scan = np.zeros(SCAN_SHAPE, bool)
    starts = ((whole - part) // 2 for whole, part in zip(SCAN_SHAPE, mask.shape, strict=True))
    scan[tuple(slice(start, start + part) for start, part in zip(starts, mask.shape, strict=True))] = mask
    return scan


def timed_pairs(data: Path) -> Iterator[tuple[str, Mask, Mask]]:
    """Name, prediction and reference of each row of the table."""
    references = [label == 1 for label in read_labels(data, "la_h5/*/mri_norm2.h5", 4)]
    for i, reference in enumerate(references):
        yield f"LA crop {i + 1}, shifted", shift_mask(reference), reference
    yield "LA crop 1, dilated", dilate_mask(references[0]), references[0]
    yield "LA crop 1, noisy", add_noise(references[0]), references[0]
    yield "LA crop 1 in 640 x 640 x 88", embed_in_scan(shift_mask(references[0])), embed_in_scan(references[0])


def print_times(data: Path, repeats: int) -> None:
    heading = ("pair", "MedPy ms", "transform ms", "ours ms", "MedPy / ours")
    print("{:28}{:>10}{:>14}{:>10}{:>14}".format(*heading))
    for name, prediction, reference in timed_pairs(data):
        medpy = median_ms(lambda p=prediction, r=reference: compute_medpy_measures(p, r), repeats)
        transform = median_ms(lambda p=prediction, r=reference: compute_with_distance_transform(p, r), repeats)
        ours = median_ms(lambda p=prediction, r=reference: compute_measures(p, r, LA_SPACING_MM), repeats)
        print(f"{name:28}{medpy:10.0f}{transform:14.0f}{ours:10.0f}{medpy / ours:13.0f}x", flush=True)
    print(f"medians of {repeats}; MedPy: dc, jc, hd95, asd in voxels; transform: distances; ours: all, voxels and mm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with MedPy instead of timing")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with la_h5 and acdc_h5; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="runs per median; default: %(default)s")
    arguments = parser.parse_args()
    if not arguments.check:
        print_times(arguments.data, arguments.repeats)
        return
    largest, count = largest_difference_to_medpy(tqdm(real_masks(arguments.data), desc="check", unit="mask"))
    print(f"{count} pairs compared with MedPy, largest difference {largest:.1e}")
    if not largest <= 1e-9:
        raise SystemExit("not equal")


if __name__ == "__main__":
    main()
