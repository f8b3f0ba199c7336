"""Files whose bytes could not be read: never called damaged, missing or empty, whichever reader met the fault."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from conftest import write_volume
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_crossmatch.data import file_integrity
from nnunetv2_crossmatch.data.diagnosis import read_sources
from nnunetv2_crossmatch.data.file_integrity import check_file_integrity
from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_plans_file
from nnunetv2_crossmatch.dataset_conversion.reading import read_nrrd
from nnunetv2_crossmatch.dataset_conversion.splits import load_splits
from nnunetv2_crossmatch.errors import InputError, NotReadError
from nnunetv2_crossmatch.evaluation.evaluate import cases_with_nominal_spacing
from nnunetv2_crossmatch.evaluation.segmentations import Segmentation, read_label_scheme, read_segmentation
from nnunetv2_crossmatch.report.case_pictures import read_image
from nnunetv2_crossmatch.training.lock import HOLDER, lock_folder
from nnunetv2_crossmatch.training.start_from import origin_of

CODES = (errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ESTALE)
VOLUME = np.arange(8, dtype=np.float32).reshape(2, 2, 2)


def failing(error: BaseException) -> Callable:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_the_integrity_check_does_not_call_an_unread_file_damaged(tmp_path: Path, code: int, monkeypatch) -> None:
    write_volume(VOLUME, tmp_path / "a.nii.gz")
    monkeypatch.setattr(file_integrity, "check_content", failing(OSError(code, os.strerror(code))))
    with pytest.raises(NotReadError, match=rf"file not read in .*{os.strerror(code)}; this says nothing"):
        check_file_integrity(tmp_path / "a.nii.gz")


def test_the_image_of_a_report_that_could_not_be_read_is_not_damaged(tmp_path: Path, monkeypatch) -> None:
    file, reader = tmp_path / "a_0000.nii.gz", SimpleITKIO()
    write_volume(VOLUME, file)
    reference = Segmentation(file, VOLUME, {})
    monkeypatch.setattr(reader, "read_images", failing(MemoryError()))
    with pytest.raises(NotReadError, match="out of memory; this says nothing"):
        read_image(file, reader, reference)


READERS = {
    "converter": lambda file: read_nrrd(file, None),
    "evaluation": lambda file: read_segmentation(file, SimpleITKIO()),
}


@pytest.mark.parametrize("name", READERS)
def test_a_library_that_hides_a_fault_of_the_disk_is_not_believed(tmp_path: Path, name: str, monkeypatch) -> None:
    """ITK tells that a file is no image where the disk failed; the bytes are read once more."""
    file = tmp_path / f"a.{'nrrd' if name == 'converter' else 'nii.gz'}"
    write_volume(VOLUME, file)
    hidden = RuntimeError("Unable to determine ImageIO reader")
    monkeypatch.setattr(SimpleITK, "ReadImage", failing(hidden))
    monkeypatch.setattr(SimpleITKIO, "read_seg", failing(hidden))
    with pytest.raises(InputError, match="damaged file"):
        READERS[name](file)
    reading = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr("nnunetv2_crossmatch.errors.Path.open", failing(reading), raising=False)
    for module in ("nnunetv2_crossmatch.data.file_integrity", "nnunetv2_crossmatch.dataset_conversion.reading"):
        monkeypatch.setattr(f"{module}.check_file_integrity", lambda file: None, raising=False)
    monkeypatch.setattr("nnunetv2_crossmatch.evaluation.segmentations.check_file_integrity", lambda file: None)
    monkeypatch.setattr("nnunetv2_crossmatch.dataset_conversion.reading._check_is_data", lambda file: None)
    with pytest.raises(NotReadError, match="Input/output error"):
        READERS[name](file)


JSON_READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "plans": ("plans.json", check_plans_file),
    "dataset": ("dataset.json", check_dataset_file),
    "label scheme": ("dataset.json", read_label_scheme),
    "conversion record": ("conversion.json", cases_with_nominal_spacing),
    "splits": ("splits.json", load_splits),
    "origin": ("crossmatch_started_from.json", lambda file: origin_of(file.parent)),
    "sources of labels": ("sources.json", lambda file: read_sources(file.parent)),
    "holder of a lock": (HOLDER, lambda file: lock_folder(file.parent)),
}


@pytest.mark.parametrize("name", JSON_READERS)
def test_json_that_could_not_be_read_is_neither_damaged_nor_missing(tmp_path: Path, name: str, monkeypatch) -> None:
    file, read = tmp_path / JSON_READERS[name][0], JSON_READERS[name][1]
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "sign_of_life_every_s": 20}))
    open_file = Path.open

    def open_others(path: Path, *arguments, **options):
        if path == file:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_others)
    with pytest.raises(NotReadError, match=rf"file not read in .*{file.name}: {os.strerror(errno.ESTALE)}"):
        read(file)
