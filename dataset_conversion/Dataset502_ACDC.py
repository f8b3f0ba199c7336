"""Converter for the cardiac cine MRI data of the ACDC challenge, as HDF5 files or as challenge folders.

Limit: finds and reads the cases; split lists, checks and writing are shared with the other converters.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from nnunetv2_crossmatch.dataset_conversion.cases import Case, FoundCases, SourceDataset
from nnunetv2_crossmatch.dataset_conversion.conversion import convert, make_parser
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, Volume, read_h5, read_nifti
from nnunetv2_crossmatch.errors import command

PATIENT = re.compile(r"patient\d+")
FRAME = re.compile(r"(patient\d+)_frame(\d+)")
FRAME_ENTRY = re.compile(r"^\s*(?:ED|ES)\s*:\s*(\d+)", re.MULTILINE)
FRAMES_PER_PATIENT = 2
NOMINAL_SPACING = Spacing((1.0, 1.0, 10.0), "nominal")


def patient_of(entry: str) -> str:
    """Patient name from a patient or frame name: ``patient003_frame01`` -> ``patient003``."""
    frame = FRAME.fullmatch(entry)
    return frame.group(1) if frame else entry


def find_h5(folder: Path) -> FoundCases:
    """Cases ``patientXXX_frameYY.h5`` in ``folder`` or ``folder/data``: two frames of each patient."""
    files = sorted(file for parent in (folder, folder / "data") for file in parent.glob("patient*.h5"))
    cases = [Case(file.stem, patient_of(file.stem), file, file, "h5") for file in files if FRAME.fullmatch(file.stem)]
    frames: dict[str, int] = {}
    for case in cases:
        frames[case.patient] = frames.get(case.patient, 0) + 1
    missing = [
        f"{patient} (1 of {FRAMES_PER_PATIENT} frames)"
        for patient, count in frames.items()
        if count < FRAMES_PER_PATIENT
    ]
    return FoundCases(cases, missing)


def find_challenge(folder: Path) -> FoundCases:
    """Cases ``patientXXX/patientXXX_frameYY.nii.gz`` in ``folder`` or ``folder/training``, frames from ``Info.cfg``."""
    paths = sorted(path for parent in (folder, folder / "training") for path in parent.glob("patient*"))
    found = [_find_frames(path) for path in paths if path.is_dir() and PATIENT.fullmatch(path.name)]
    cases = [case for patient in found for case in patient.cases]
    return FoundCases(cases, [name for patient in found for name in patient.incomplete])


def read_case(case: Case, with_label: bool, h5_spacing: Spacing = NOMINAL_SPACING) -> Volume:
    """Read one case of either layout; HDF5 files have the axes (z, y, x) and no voxel size."""
    if case.layout == "h5":
        return read_h5(case.image, "zyx", h5_spacing, with_label)
    return read_nifti(case.image, case.label if with_label else None)


def _find_frames(patient_folder: Path) -> FoundCases:
    """End diastole and end systole of one patient; without ``Info.cfg``, all frames that have a file."""
    numbers = _frame_numbers(patient_folder / "Info.cfg")
    notes: tuple[str, ...] = ()
    names = [f"{patient_folder.name}_frame{number:02d}" for number in numbers]
    if not numbers:
        notes = ("frames taken from the file names, since Info.cfg does not name them",)
        stems = (file.name.removesuffix(".nii.gz") for file in sorted(patient_folder.glob("*.nii.gz")))
        names = [stem for stem in stems if FRAME.fullmatch(stem)]
    present = [name for name in names if (patient_folder / f"{name}.nii.gz").is_file()]
    cases = [_challenge_case(patient_folder, name, notes) for name in present]
    missing = [name for name in names if name not in present]
    if len(names) < FRAMES_PER_PATIENT:
        missing.append(f"{patient_folder.name} ({len(names)} of {FRAMES_PER_PATIENT} frames)")
    return FoundCases(cases, missing)


def _frame_numbers(info: Path) -> list[int]:
    if not info.is_file():
        return []
    return sorted({int(number) for number in FRAME_ENTRY.findall(info.read_text(encoding="utf-8", errors="replace"))})


def _challenge_case(patient_folder: Path, name: str, notes: tuple[str, ...]) -> Case:
    label = patient_folder / f"{name}_gt.nii.gz"
    return Case(
        name,
        patient_folder.name,
        patient_folder / f"{name}.nii.gz",
        label if label.is_file() else None,
        "challenge",
        notes,
    )


DATASET = SourceDataset(
    name="ACDC",
    channel="cineMRI",
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    shipped_splits=Path(__file__).with_name("data") / "acdc_splits.json",
    patient_of=patient_of,
    finders={"h5": find_h5, "challenge": find_challenge},
    expected_files="patientXXX_frameYY.h5, or patientXXX/patientXXX_frameYY.nii.gz with Info.cfg",
    read_case=read_case,
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
    arguments = make_parser(DATASET, DESCRIPTION, EXAMPLES)
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
    z, y, x = options.spacing or NOMINAL_SPACING.xyz_mm[::-1]
    spacing = Spacing((x, y, z), "given" if options.spacing else "nominal")
    convert(replace(DATASET, read_case=partial(read_case, h5_spacing=spacing)), options)


if __name__ == "__main__":
    main()
