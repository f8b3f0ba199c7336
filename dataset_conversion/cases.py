"""Records of a conversion: cases found in a folder, jobs for the workers, and their results.

Limit: picklable data classes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_crossmatch.dataset_conversion.reading import Volume
from nnunetv2_crossmatch.errors import Problem


@dataclass(frozen=True)
class Case:
    """One image of one patient and its label file, if it has one (for HDF5 the same file)."""

    identifier: str
    patient: str
    image: Path
    label: Path | None
    layout: str
    notes: tuple[str, ...] = ()

    def sources(self, role: str) -> list[Path]:
        """The files that are read for a case with this ``role``; the label of an unlabeled case is not read."""
        label = [self.label] if self.label and role != "unlabeled" else []
        return list(dict.fromkeys([self.image, *label]))


@dataclass(frozen=True)
class FoundCases:
    """Cases of one layout in a folder; ``incomplete`` names missing frames of patients that are present."""

    cases: list[Case] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)


ReadCase = Callable[[Case, bool], Volume]


@dataclass(frozen=True)
class SourceDataset:
    """Description of a published data set.

    Attributes:
        finders: layout -> function that finds the cases of that layout in a folder.
        read_case: picklable function of a case and whether to read its label.
        caveats: layout -> warning that is printed and recorded.
    """

    name: str
    channel: str
    labels: Mapping[str, int]
    reference: str
    shipped_splits: Path
    patient_of: Callable[[str], str]
    finders: Mapping[str, Callable[[Path], FoundCases]]
    expected_files: str
    read_case: ReadCase
    caveats: Mapping[str, str]

    @property
    def command(self) -> str:
        """The console command that converts this data set."""
        return f"nnUNetv2_crossmatch_convert_{self.name}"


@dataclass(frozen=True)
class ConversionJob:
    """One case to convert into the folder ``target``."""

    case: Case
    role: str
    classes: int
    read_case: ReadCase
    target: Path


@dataclass(frozen=True)
class CaseResult:
    """Result of a job: its entry in the conversion record, or its problems."""

    identifier: str
    entry: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
