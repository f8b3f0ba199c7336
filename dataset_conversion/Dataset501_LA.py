"""Converter for the left atrium data (2018 Atrial Segmentation Challenge), as HDF5 files or as challenge folders.

Limit: finds and reads the cases; split lists, checks and writing are shared with the other converters.
"""

from __future__ import annotations

from pathlib import Path

from nnunetv2_crossmatch.dataset_conversion.cases import Case, FoundCases, SourceDataset
from nnunetv2_crossmatch.dataset_conversion.conversion import convert, make_parser
from nnunetv2_crossmatch.dataset_conversion.reading import Spacing, Volume, read_h5, read_nrrd
from nnunetv2_crossmatch.errors import command

H5_FILE = "mri_norm2.h5"
IMAGE_FILE = "lgemri.nrrd"
LABEL_FILE = "laendo.nrrd"
H5_SPACING = Spacing((0.625, 0.625, 0.625), "published")


def find_h5(folder: Path) -> FoundCases:
    """Cases ``<case>/mri_norm2.h5``."""
    return FoundCases(
        [Case(file.parent.name, file.parent.name, file, file, "h5") for file in _visible_files(folder, H5_FILE)]
    )


def find_challenge(folder: Path) -> FoundCases:
    """Cases ``<case>/lgemri.nrrd``, with the label ``<case>/laendo.nrrd`` if it exists."""
    images = _visible_files(folder, IMAGE_FILE)
    labels = [image.with_name(LABEL_FILE) for image in images]
    return FoundCases(
        [
            Case(image.parent.name, image.parent.name, image, label if label.is_file() else None, "challenge")
            for image, label in zip(images, labels, strict=True)
        ]
    )


def read_case(case: Case, with_label: bool) -> Volume:
    """Read one case of either layout; HDF5 files have the axes (x, y, z) and get the published 0.625 mm."""
    if case.layout == "h5":
        return read_h5(case.image, "xyz", H5_SPACING, with_label)
    return read_nrrd(case.image, case.label if with_label else None)


def _visible_files(folder: Path, name: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*/{name}") if not file.parent.name.startswith("."))


DATASET = SourceDataset(
    name="LA",
    channel="LGE-MRI",
    labels={"background": 0, "left atrium": 1},
    reference="https://www.cardiacatlas.org/atriaseg2018-challenge/",
    shipped_splits=Path(__file__).with_name("data") / "la_splits.json",
    patient_of=str,
    finders={"h5": find_h5, "challenge": find_challenge},
    expected_files=f"<case>/{H5_FILE}, or <case>/{IMAGE_FILE} with {LABEL_FILE}",
    read_case=read_case,
    caveats={
        "h5": "the h5 volumes of LA are cropped around the reference atrium, test cases included: "
        "scores on them compare with the published tables that use them, and with nothing else"
    },
)

DESCRIPTION = """\
Convert the left atrium data (2018 Atrial Segmentation Challenge) to a raw nnU-Net data set: labeled cases to
imagesTr and labelsTr, the other training cases to imagesUn, validation to imagesVal and labelsVal, test to imagesTs
and labelsTs.
The published lists have 80 training and 20 test cases and labeled subsets of 4, 8 and 16. Label values {0, 255}
become {0, 1}. HDF5 files have no voxel size: 0.625 mm in all axes, as published."""
EXAMPLES = """\
  nnUNetv2_crossmatch_convert_LA -i "2018LA_Seg_Training Set" -d 501 --labeled 8
  nnUNetv2_crossmatch_convert_LA -i my_h5_folder -d 601 --labeled 3 --splits my_splits.json"""


@command
def main() -> None:
    """Console command ``nnUNetv2_crossmatch_convert_LA``."""
    convert(DATASET, make_parser(DATASET, DESCRIPTION, EXAMPLES).parse_args())


if __name__ == "__main__":
    main()
