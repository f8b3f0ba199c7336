"""Cardiac cine MRI (ACDC challenge): the HDF5 form of the literature or the challenge's own folders.

Limit: finds and reads the cases; lists, checks and writing are shared with the other converters.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from nnunetv2_crossmatch.dataset_conversion.cases import Case, Found, SourceDataset
from nnunetv2_crossmatch.dataset_conversion.conversion import convert, parser
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, Volume, read_h5, read_nifti
from nnunetv2_crossmatch.errors import command

PATIENT = re.compile(r"patient\d+")
FRAME = re.compile(r"(patient\d+)_frame(\d+)")
PHASE = re.compile(r"^\s*(?:ED|ES)\s*:\s*(\d+)", re.MULTILINE)
PHASES = 2
NOMINAL = Spacing((1.0, 1.0, 10.0), "nominal")


def patient_of(entry: str) -> str:
    """Patient of a patient's or a frame's name: ``patient003_frame01`` -> ``patient003``."""
    frame = FRAME.fullmatch(entry)
    return frame.group(1) if frame else entry


def find_h5(folder: Path) -> Found:
    """Cases ``patientXXX_frameYY.h5`` in ``folder`` or ``folder/data``: two frames of each patient."""
    files = sorted(file for place in (folder, folder / "data") for file in place.glob("patient*.h5"))
    cases = [Case(file.stem, patient_of(file.stem), file, file, "h5") for file in files if FRAME.fullmatch(file.stem)]
    frames: dict[str, int] = {}
    for case in cases:
        frames[case.patient] = frames.get(case.patient, 0) + 1
    lacking = [f"{patient} (1 of {PHASES} frames)" for patient, count in frames.items() if count < PHASES]
    return Found(cases, lacking)


def find_challenge(folder: Path) -> Found:
    """Cases ``patientXXX/patientXXX_frameYY.nii.gz`` in ``folder`` or ``folder/training``, frames from ``Info.cfg``."""
    places = [path for place in (folder, folder / "training") for path in place.glob("patient*") if path.is_dir()]
    found = [_frames(place) for place in sorted(places) if PATIENT.fullmatch(place.name)]
    return Found([case for one in found for case in one.cases], [name for one in found for name in one.incomplete])


def read(case: Case, with_label: bool, h5_spacing: Spacing = NOMINAL) -> Volume:
    """Read one case of either layout; HDF5 has the axes (z, y, x) and no voxel size."""
    if case.layout == "h5":
        return read_h5(case.image, "zyx", h5_spacing, with_label)
    return read_nifti(case.image, case.label if with_label else None)


def _frames(place: Path) -> Found:
    """End diastole and end systole of one patient; without ``Info.cfg`` whatever frames have files of their own."""
    numbers = _phases(place / "Info.cfg")
    notes: tuple[str, ...] = ()
    names = [f"{place.name}_frame{number:02d}" for number in numbers]
    if not numbers:
        notes = ("frames taken from the file names, since Info.cfg does not name them",)
        stems = (file.name.removesuffix(".nii.gz") for file in sorted(place.glob("*.nii.gz")))
        names = [stem for stem in stems if FRAME.fullmatch(stem)]
    cases = [_challenge_case(place, name, notes) for name in names if (place / f"{name}.nii.gz").is_file()]
    lacking = [name for name in names if not (place / f"{name}.nii.gz").is_file()]
    if len(names) < PHASES:
        lacking.append(f"{place.name} ({len(names)} of {PHASES} frames)")
    return Found(cases, lacking)


def _phases(info: Path) -> list[int]:
    if not info.is_file():
        return []
    return sorted({int(number) for number in PHASE.findall(info.read_text(encoding="utf-8", errors="replace"))})


def _challenge_case(place: Path, name: str, notes: tuple[str, ...]) -> Case:
    label = place / f"{name}_gt.nii.gz"
    return Case(name, place.name, place / f"{name}.nii.gz", label if label.is_file() else None, "challenge", notes)


DATASET = SourceDataset(
    name="ACDC",
    channel="cineMRI",
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    shipped_splits=Path(__file__).with_name("data") / "acdc_splits.json",
    patient_of=patient_of,
    find={"h5": find_h5, "challenge": find_challenge},
    expected="patientXXX_frameYY.h5, or patientXXX/patientXXX_frameYY.nii.gz with Info.cfg",
    read=read,
    caveats={},
)

DESCRIPTION = """\
Convert the ACDC cine MRI data (end diastole and end systole) to a raw nnU-Net data set: labeled cases to imagesTr and
labelsTr, the other training cases to imagesUn, validation to imagesVal and labelsVal, test to imagesTs and labelsTs.
The published lists have 70 training, 10 validation and 20 test patients and labeled subsets of 1, 3 and 7 patients;
--labeled counts patients. Folds are made by patient, so that no patient's frames are on both sides."""
EXAMPLES = """\
  nnUNetv2_crossmatch_convert_ACDC -i ACDC -d 502 --labeled 7
  nnUNetv2_crossmatch_convert_ACDC -i database/training -d 503 --labeled 12 --splits my_splits.json"""


@command
def main() -> None:
    """Console command ``nnUNetv2_crossmatch_convert_ACDC``."""
    arguments = parser(DATASET, DESCRIPTION, EXAMPLES)
    arguments.add_argument(
        "--spacing",
        nargs=3,
        type=float,
        metavar=("Z", "Y", "X"),
        help="voxel size in mm for HDF5 files, which have none (else 10 1 1, recorded as nominal: no lengths in mm)",
    )
    options = arguments.parse_args()
    if options.spacing and min(options.spacing) <= 0:
        arguments.error("--spacing: voxel sizes must be positive")
    z, y, x = options.spacing or NOMINAL.xyz_mm[::-1]
    spacing = Spacing((x, y, z), "given" if options.spacing else "nominal")
    convert(replace(DATASET, read=partial(read, h5_spacing=spacing)), options)


if __name__ == "__main__":
    main()
