"""What passes between the steps of a conversion: cases found in a folder, jobs for the workers, and their outcomes.

Limit: plain records that can be pickled; nothing happens here.
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
    """One image of one patient and its label file, if there is one (for HDF5 the same file)."""

    identifier: str
    patient: str
    image: Path
    label: Path | None
    layout: str
    notes: tuple[str, ...] = ()

    def sources(self, role: str) -> list[Path]:
        """The files that are read when the case plays ``role``: an unlabeled case's label is not."""
        label = [self.label] if self.label and role != "unlabeled" else []
        return list(dict.fromkeys([self.image, *label]))


@dataclass(frozen=True)
class Found:
    """What a folder holds in one layout; ``incomplete`` names what should be there beside it."""

    cases: list[Case] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)


ReadCase = Callable[[Case, bool], Volume]


@dataclass(frozen=True)
class SourceDataset:
    """What a data set brings along.

    ``find`` has one function per layout; ``read`` gets a case and whether its label is wanted, and must be picklable;
    ``caveats`` are told and recorded, one per layout.
    """

    name: str
    channel: str
    labels: Mapping[str, int]
    reference: str
    shipped_splits: Path
    patient_of: Callable[[str], str]
    find: Mapping[str, Callable[[Path], Found]]
    expected: str
    read: ReadCase
    caveats: Mapping[str, str]

    @property
    def command(self) -> str:
        """The console command that converts this data set."""
        return f"nnUNetv2_crossmatch_convert_{self.name}"


@dataclass(frozen=True)
class Job:
    """One case to convert into the folder ``target``."""

    case: Case
    role: str
    classes: int
    read: ReadCase
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its entry in the conversion record, or its problems."""

    identifier: str
    entry: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
