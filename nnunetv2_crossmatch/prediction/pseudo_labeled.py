"""A data set of labeled cases and of unlabeled ones with predicted labels, for a second training: self-training.

Source: Lee, Pseudo-Label, ICML workshop 2013. Limit: makes the raw data set; planning and training are nnU-Net's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.plans_check import check_dataset_file
from nnunetv2_crossmatch.data.raw_cases import group_by_case
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.json_files import read_json
from nnunetv2_crossmatch.prediction.case_list import check_known, read_case_list
from nnunetv2_crossmatch.prediction.predictor import CasePredictor

LIST = "pseudo_labels.json"
"""Which labels of the data set are predicted, with what, and how sure the model was."""
DONE = "predicted.json"
"""Of an unfinished run: the model, and the confidence of each case that is predicted."""


def make_pseudo_labeled(
    model: CasePredictor, dataset: str, target_id: int, name: str, keep: float = 1.0, only: Path | None = None
) -> Path:
    """Predict ``imagesUn`` of ``dataset`` and write ``Dataset<target_id>_<name>`` with both kinds of labels.

    A run that was stopped goes on where it was. Images are hard links where the file system allows them, labels are
    copies. The original is not changed, and nothing is overwritten.

    Args:
        model: of this data set.
        dataset: ``DatasetXXX_Name``.
        target_id: 1 to 999, of no other data set.
        name: the second part of the new one's name.
        keep: share of the unlabeled cases that are used, the surest ones; more than 0, at most 1.
        only: file that lists the unlabeled cases to take; None: all.

    Returns:
        The new raw data set.

    Raises:
        InputError: there are no unlabeled images, ``only`` cannot be used or lists others, the model is of another data
            set, the id is taken or the name none, or another process does the same.
    """
    source = folders.raw_folder() / dataset
    ending = model.check_dataset(source / "dataset.json")["file_ending"]
    unlabeled = listed_images(unlabeled_images(source, ending), only)
    target = folders.raw_folder() / checked_name(target_id, name)
    work = target.with_name(f".{target.name}.predictions")
    if _is_complete(target, work):
        return target
    check_free(target_id)
    facts = model.facts
    with folders.exclusive(work):
        done = _begun(work, facts)
        for case in tqdm([case for case in unlabeled if case not in done], desc="predicting", unit="case"):
            done[case] = _predict(model, unlabeled[case], work / f"{case}{ending}")
            folders.write_json(work / DONE, {**facts, "confidence": done})
    done = {case: done[case] for case in unlabeled}
    used = surest(done, keep)
    with folders.atomic_folder(target) as folder:
        join(folder, source, {case: unlabeled[case] for case in used}, work)
        cases = {case: {"confidence": done[case], "used": case in used} for case in sorted(done)}
        folders.write_json(folder / LIST, {**facts, "dataset": dataset, "keep": keep, "cases": cases})
    shutil.rmtree(work)
    return target


def surest(confidence: Mapping[str, float], keep: float) -> list[str]:
    """The share ``keep`` of the cases, at least one, whose confidence is highest; sorted by name."""
    count = max(1, round(keep * len(confidence)))
    return sorted(sorted(confidence, key=lambda case: (-confidence[case], case))[:count])


def listed_images(unlabeled: dict[str, list[Path]], only: Path | None) -> dict[str, list[Path]]:
    """The images of the cases that the file ``only`` lists; None: all.

    Raises:
        InputError: the file cannot be used, or lists a case that has no images.
    """
    if only is None:
        return unlabeled
    names = read_case_list(only)
    check_known(names, unlabeled, only, next(iter(unlabeled.values()))[0].parent)
    return {case: files for case, files in unlabeled.items() if case in set(names)}


def unlabeled_images(source: Path, ending: str, images: Path | None = None) -> dict[str, list[Path]]:
    """Images of the unlabeled cases of a raw data set, in its ``imagesUn`` or in the folder ``images``.

    Raises:
        InputError: there are none, or one of them has the name of a labeled case.
    """
    images = images or source / "imagesUn"
    cases = group_by_case(images, ending)[0] if images.is_dir() else {}
    if not cases:
        raise InputError(Problem("no unlabeled images", images, f"no <case>_0000{ending} there", "put them there"))
    labeled = group_by_case(source / "imagesTr", ending)[0]
    fix = "remove the image, or rename it"
    raise_if_any(
        [Problem("labeled case among the unlabeled", images, case, fix) for case in sorted(cases & labeled.keys())]
    )
    return cases


def checked_name(target_id: int, name: str) -> str:
    """``Dataset<target_id>_<name>``.

    Raises:
        InputError: it is no name of a folder.
    """
    if not folders.is_file_name(name):
        raise InputError(Problem("no name of a folder", "", f"--name {name}", "give one without slashes"))
    return f"Dataset{target_id:03d}_{name}"


def check_free(target_id: int) -> None:
    """Refuse the id of an existing data set.

    Raises:
        InputError: a raw, preprocessed or trained data set has it.
    """
    roots = [folders.raw_folder(), folders.preprocessed_folder()]
    with suppress(InputError):
        roots.append(folders.results_folder())
    taken = [root / one for root in roots for one in folders.datasets_with_id(root, target_id)]
    if taken:
        raise InputError(Problem("data set id taken", taken[0], f"it has the id {target_id:03d}", "choose another -o"))


def _is_complete(target: Path, work: Path) -> bool:
    """Whether a run was killed after its data set was there and before its predictions were removed; removes them."""
    if not (work.is_dir() and (target / LIST).is_file()):
        return False
    with folders.exclusive(work):
        shutil.rmtree(work)
    return True


def _begun(work: Path, facts: Mapping[str, Any]) -> dict[str, float]:
    """Note what predicts; confidence of the cases that an earlier run of the same model has predicted."""
    work.mkdir(exist_ok=True)
    if not (work / DONE).exists():
        folders.write_json(work / DONE, {**facts, "confidence": {}})
    form = {"model": str, "checkpoints": {...: int}, "confidence": {...: float}}
    before = read_json(work / DONE, form, f"remove {work}; its cases are predicted anew", "unusable list")
    done: dict[str, float] = before.pop("confidence")
    if before != json.loads(json.dumps(facts)):
        detail = "it holds predictions of another model"
        raise InputError(Problem("unfinished run", work, detail, "remove the folder, or give that model"))
    return done


def _predict(model: CasePredictor, images: Sequence[Path], file: Path) -> float:
    """Write the labels of a case; returns its confidence."""
    prediction = model.predict(images)
    model.reader.write_seg(prediction.labels, str(file), prediction.properties)
    return prediction.confidence(model.regions)


def join(folder: Path, source: Path, unlabeled: Mapping[str, Sequence[Path]], predictions: Path) -> list[str]:
    """Fill ``folder`` with the labeled cases of the raw data set ``source`` and unlabeled ones with predicted labels.

    Args:
        folder: of the new raw data set; empty.
        source: has ``imagesTr``, ``labelsTr`` and ``dataset.json``.
        unlabeled: image files by case.
        predictions: holds ``<case><ending>`` of each of them.

    Returns:
        The labeled cases.
    """
    description = check_dataset_file(source / "dataset.json")
    ending = description["file_ending"]
    labeled = list(group_by_case(source / "imagesTr", ending)[0])
    images, labels = folder / "imagesTr", folder / "labelsTr"
    shutil.copytree(source / "imagesTr", images, copy_function=link_or_copy)
    shutil.copytree(source / "labelsTr", labels)
    for case, files in unlabeled.items():
        for file in [*files, *_beside(files[0].parent, [f.name.removesuffix(ending) for f in files] + [case])]:
            link_or_copy(str(file), str(images / file.name))
        for file in [predictions / f"{case}{ending}", *_beside(predictions, [case])]:
            shutil.copyfile(file, labels / file.name)
    folders.write_json(folder / "dataset.json", {**description, "numTraining": len(labeled) + len(unlabeled)})
    return labeled


def _beside(folder: Path, stems: Sequence[str]) -> list[Path]:
    """Files of a spacing (``<stem>.json``), which nnU-Net's reader of .tif wants."""
    return [file for stem in stems if (file := folder / f"{stem}.json").is_file()]


def link_or_copy(source: str, target: str) -> None:
    """Make a hard link, or a copy where that is not possible."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
