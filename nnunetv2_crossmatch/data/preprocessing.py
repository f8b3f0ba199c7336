"""Preprocessing of ``imagesUn``, and checks of the preprocessed unlabeled cases before a training.

Limit: one machine; a second run on the same folder waits for the first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunetv2_crossmatch import __version__, folders
from nnunetv2_crossmatch.data.case_preprocessing import DatasetConfiguration, Job, run_jobs
from nnunetv2_crossmatch.data.manifest import (
    Manifest,
    ManifestWriter,
    file_crc32,
    find_damaged_cases,
    preprocessing_version,
    read_manifest,
    sources_changed,
    updated_file_info,
)
from nnunetv2_crossmatch.data.plans_check import (
    check_dataset_file,
    check_dataset_name,
    check_plans_file,
    label_manager_of,
)
from nnunetv2_crossmatch.data.raw_cases import (
    RawCase,
    equal_but_for_case,
    find_unlabeled_cases,
    images_by_case,
    labeled_and_test_images,
    leak_problems,
)
from nnunetv2_crossmatch.data.reader_warnings import by_kind
from nnunetv2_crossmatch.data.unlabeled_folder import (
    UnlabeledFolder,
    check_no_link_to_other_dataset,
    check_not_read,
    disk_errors_reported,
    folder_lock,
    remove_other_cases,
    unlabeled_folder_of,
    up_to_date_cases,
)
from nnunetv2_crossmatch.errors import InputError, Problem, command_line, raise_if_any


@dataclass(frozen=True)
class ConfigurationJobs:
    """Cases to preprocess for one configuration, and the writer of its manifest."""

    manifest_writer: ManifestWriter
    jobs: list[Job]


def is_preprocessed(plans_manager: PlansManager, configuration: str) -> bool:
    """Whether the unlabeled cases were preprocessed for ``configuration``; does not check the files.

    False after a run that was killed: its temporary folder still exists.
    """
    unlabeled = unlabeled_folder_of(plans_manager, configuration, plans_manager.plans_name)
    return unlabeled.manifest_file.is_file() and not folders.partial_path(unlabeled.folder).exists()


def trainable_cases(plans_manager: PlansManager, configuration: str, verify: bool = True) -> list[str]:
    """Check the preprocessed unlabeled cases and return their identifiers, sorted.

    Args:
        plans_manager: the plans of the training.
        configuration: its configuration.
        verify: read every file and compare its CRC32 with the manifest (hundreds of MB/s); otherwise only the
            manifest, the plans, and names and sizes of the raw images are compared.

    Raises:
        InputError: no case was preprocessed, or fewer than asked for; a file is damaged; plans, versions or raw images
            have changed since; or a labeled or held-out image is among them. All problems are listed, each with the
            command that fixes it.
    """
    unlabeled = unlabeled_folder_of(plans_manager, configuration, plans_manager.plans_name)
    manifest = read_manifest(unlabeled.manifest_file, unlabeled.command)
    if manifest.plans_hash != unlabeled.plans_hash:
        detail = "the plans have changed since the unlabeled cases were preprocessed"
        raise InputError(Problem("plans differ", unlabeled.manifest_file, detail, unlabeled.command))
    if manifest.made_with not in ("", preprocessing_version()):
        detail = f"{manifest.made_with} before, {preprocessing_version()} now"
        raise InputError(Problem("preprocessed by other versions", unlabeled.manifest_file, detail, unlabeled.command))
    if not manifest.cases:
        raise InputError(Problem("no unlabeled cases", unlabeled.folder, "the folder is empty", unlabeled.command))
    problems = _raw_image_problems(plans_manager.dataset_name, manifest, unlabeled)
    problems += _labeled_case_problems(manifest, unlabeled)
    if verify:
        damaged = find_damaged_cases(unlabeled.folder, manifest)
        damage = (entry for damage in damaged.values() for entry in damage)
        problems += [Problem("unlabeled case damaged", file, detail, unlabeled.command) for file, detail in damage]
    raise_if_any(problems)
    return sorted(manifest.cases)


def raw_checksums(plans_manager: PlansManager, configuration: str) -> dict[str, list[int]]:
    """CRC32 of the raw files of each preprocessed case, independent of the compression of the preprocessed files."""
    unlabeled = unlabeled_folder_of(plans_manager, configuration, plans_manager.plans_name)
    cases = read_manifest(unlabeled.manifest_file, unlabeled.command).cases
    return {name: [record.sources[file].crc32 for file in sorted(record.sources)] for name, record in cases.items()}


def labeled_checksums(dataset: str, dataset_json: dict, cases: Iterable[str]) -> dict[str, list[int]]:
    """CRC32 of the raw images of each labeled case in ``cases``; empty if the raw data set is not on this machine."""
    if not _has_raw_folder(dataset):
        return {}
    images = _labeled_images(dataset, dataset_json)
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        return {case: pool.map(file_crc32, images[case]) for case in sorted(cases) if case in images}


def _labeled_case_problems(manifest: Manifest, unlabeled: UnlabeledFolder) -> list[Problem]:
    """Cases that are also among the preprocessed labeled cases; needs no raw images."""
    labeled = unlabeled.folder.with_name(unlabeled.folder.name.removesuffix("_unlabeled"))
    duplicates = manifest.cases.keys() & {file.stem for file in labeled.glob("*.pkl")}
    detail = "is among the labeled cases as well"
    return [
        Problem("leak", unlabeled.folder, f"{name} {detail}", "remove it from imagesUn") for name in sorted(duplicates)
    ]


def _raw_image_problems(dataset: str, manifest: Manifest, unlabeled: UnlabeledFolder) -> list[Problem]:
    """Differences between raw images and manifest, and data leakage; without raw images, what the last run left out."""
    raw, dataset_json = _raw_cases(dataset, required=False)
    if not raw:
        return _left_out_problems(manifest, unlabeled)
    no_files = {name: files for name, case in raw.items() if (files := case.no_files)}
    for name in no_files.keys() - manifest.cases.keys():
        print(f"Not used: {name}, since {no_files[name][0]} is no file", flush=True)
    new = sorted(raw.keys() - manifest.cases.keys() - no_files.keys())
    gone = sorted(manifest.cases.keys() - raw.keys())
    changed = [
        name
        for name in sorted(raw.keys() & manifest.cases.keys())
        if sources_changed(manifest.cases[name], raw[name].sources)
    ]
    groups = {"not preprocessed yet": new, "no longer there": gone, "changed": changed}
    details = [f"{len(names)} {kind} ({_shortened(names)})" for kind, names in groups.items() if names]
    where = folders.unlabeled_images_folder(dataset)
    outdated = [Problem("raw images differ from preprocessed ones", where, "; ".join(details), unlabeled.command)]
    return (outdated if details else []) + _leak_problems(dataset, dataset_json, raw, manifest)


def _left_out_problems(manifest: Manifest, unlabeled: UnlabeledFolder) -> list[Problem]:
    """Problem of cases that the last run was asked for and that are not there."""
    if not (missing := manifest.missing()):
        return []
    why = "the images could not be used" if manifest.ended else "the run was interrupted"
    detail = f"{len(missing)} of {len(manifest.asked_for)} cases are missing ({_shortened(missing)}): {why}"
    remedy = f"where the raw images are, mend them or remove them from imagesUn, then {unlabeled.command}"
    return [Problem("preprocessing incomplete", unlabeled.folder, detail, remedy)]


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _raw_cases(dataset: str, required: bool = True) -> tuple[dict[str, RawCase], dict]:
    """Raw unlabeled cases and dataset.json; if not ``required``, no cases where the raw data set is absent."""
    description = folders.preprocessed_folder() / dataset / "dataset.json"
    if not description.is_file():
        remedy = command_line(
            "nnUNetv2_plan_and_preprocess", "-d", folders.dataset_number(dataset), "--verify_dataset_integrity"
        )
        raise InputError(Problem("data set not planned", description, "file missing", remedy))
    dataset_json = check_dataset_file(description)
    if not required and not _has_raw_images(dataset):
        return {}, dataset_json
    images, counts = folders.unlabeled_images_folder(dataset), _images_per_case(dataset, dataset_json)
    return find_unlabeled_cases(images, dataset_json["file_ending"], counts), dataset_json


def _images_per_case(dataset: str, dataset_json: dict) -> set[int]:
    """Allowed numbers of image files per case: those of the labeled cases, since a file can contain several channels.

    Without labeled images: up to one file per channel. The number of channels is checked when the files are read.
    """
    names = dataset_json.get("channel_names") or dataset_json["modality"]
    labeled = _labeled_images(dataset, dataset_json)
    return {len(files) for files in labeled.values()} or set(range(1, len(names) + 1))


def _labeled_images(dataset: str, dataset_json: dict) -> dict[str, list[Path]]:
    """Labeled images by identifier, from dataset.json or from imagesTr."""
    images = folders.raw_folder() / dataset / "imagesTr"
    return _images_in_dataset_json(dataset, dataset_json) or images_by_case(images, dataset_json["file_ending"])


def _has_raw_folder(dataset: str) -> bool:
    try:
        return (folders.raw_folder() / dataset).is_dir()
    except InputError:  # a training machine may have the preprocessed data only
        return False


def _images_in_dataset_json(dataset: str, dataset_json: dict) -> dict[str, list[Path]]:
    """Labeled images by identifier if dataset.json lists them, in any folder."""
    if "dataset" not in dataset_json:
        return {}
    from_dataset_json = get_filenames_of_train_images_and_targets(str(folders.raw_folder() / dataset), dataset_json)
    return {name: [Path(file) for file in entry["images"]] for name, entry in from_dataset_json.items()}


def _has_raw_images(dataset: str) -> bool:
    """Whether raw unlabeled images exist: a training machine may have the preprocessed ones only."""
    try:
        return any(folders.unlabeled_images_folder(dataset).iterdir())
    except (InputError, FileNotFoundError):
        return False


def _leak_problems(dataset: str, dataset_json: dict, raw: Mapping[str, RawCase], manifest: Manifest) -> list[Problem]:
    """Unlabeled images that are labeled or held-out images too, by name or by bytes."""
    reserved = _reserved_images(dataset, dataset_json)
    known = {name: info for record in manifest.cases.values() for name, info in record.sources.items()}

    def crc_unlabeled(file: Path) -> int:
        return updated_file_info(file, known.get(file.name)).crc32

    return leak_problems(raw.values(), reserved, crc_unlabeled, file_crc32)


def _reserved_images(dataset: str, dataset_json: dict) -> dict[str, list[Path]]:
    """Labeled, validation and test images by identifier."""
    reserved = labeled_and_test_images(folders.raw_folder() / dataset, dataset_json["file_ending"])
    return reserved | _images_in_dataset_json(dataset, dataset_json)


def _check_cases_of_letters(raw: Iterable[str], reserved: Iterable[str], folder: Path) -> None:
    """Print pairs of identifiers that differ in upper and lower case only: often one patient under two names.

    Raises:
        InputError: two unlabeled ones do, and the file system of ``folder`` takes their files for the same.
    """
    twins = [(one, other) for one, other in equal_but_for_case(raw, raw) if one < other]
    if twins and folders.ignores_case(folder):
        fix = "rename one of each pair, or use a file system that tells upper from lower case"
        raise_if_any([Problem("one file for two cases", folder, f"{one} and {other}", fix) for one, other in twins])
    for one, other in twins + equal_but_for_case(raw, reserved):
        print(f"warning: {one} and {other} differ in upper and lower case only: is it one patient?", flush=True)


def raw_case_names(dataset: str) -> list[str]:
    """Identifiers of the raw unlabeled cases; checks file names only.

    Raises:
        InputError: the data set is not planned, or images are missing or misnamed; all of them are named.
    """
    return list(_raw_cases(dataset)[0])


def preprocess_unlabeled(dataset: str, plans_identifier: str, configurations: Sequence[str], processes: int) -> None:
    """Preprocess ``imagesUn`` of ``dataset`` into ``<data_identifier>_unlabeled`` for each configuration.

    Up-to-date cases are kept, changed and damaged ones are preprocessed again, and those without raw image are removed.
    An interrupted run leaves complete cases only; the next run continues it.

    Args:
        dataset: full name of the data set, ``DatasetXXX_Name``.
        plans_identifier: name of the plans file without its ending.
        configurations: names of configurations; if empty, all except cascade stages.
        processes: worker processes.

    Raises:
        InputError: plans or images are missing or wrong, or a worker was killed. All bad images are named; the others
            are preprocessed.
    """
    plans_manager = _plans_manager(dataset, plans_identifier)
    selected = _select_configurations(plans_manager, plans_identifier, configurations)
    raw, dataset_json = _raw_cases(dataset)
    label_manager_of(plans_manager, dataset_json)
    raise_if_any(_leak_problems(dataset, dataset_json, raw, Manifest("", __version__)))
    _check_cases_of_letters(raw, _reserved_images(dataset, dataset_json), folders.preprocessed_folder() / dataset)
    with ExitStack() as stack:
        job_lists = []
        for configuration in sorted(selected):  # equal order of the locks in all runs, against deadlocks
            unlabeled = unlabeled_folder_of(plans_manager, configuration, plans_identifier)
            target = DatasetConfiguration(dataset, plans_identifier, configuration)
            job_lists.append(stack.enter_context(_locked_jobs(target, unlabeled, raw)))
        problems = _run_job_lists(job_lists, processes)
    raise_if_any(problems)


def _plans_manager(dataset: str, plans_identifier: str) -> PlansManager:
    file = DatasetConfiguration(dataset, plans_identifier, "").plans_file
    if not file.is_file():
        plan = command_line("nnUNetv2_plan_and_preprocess", "-d", folders.dataset_number(dataset))
        remedy = f"{plan}, or name other plans with -p"
        raise InputError(Problem("plans missing", file, "file missing", remedy))
    plans = check_plans_file(file)
    check_dataset_name(file)
    return PlansManager(plans)


def _select_configurations(plans_manager: PlansManager, plans_identifier: str, requested: Sequence[str]) -> list[str]:
    """The requested configurations, or all without a previous stage; one of each group with equal data identifier."""
    available = plans_manager.available_configurations
    problems = [
        Problem("configuration unknown", plans_identifier, name, f"choose from {', '.join(available)}")
        for name in requested
        if name not in available
    ]
    raise_if_any(problems)
    managers = {name: plans_manager.get_configuration(name) for name in requested or available}
    candidates = {
        name: manager for name, manager in managers.items() if requested or manager.previous_stage_name is None
    }
    name_of_data = {manager.data_identifier: name for name, manager in reversed(candidates.items())}
    return [name for name in candidates if name in name_of_data.values()]


@contextmanager
def _locked_jobs(
    target: DatasetConfiguration, unlabeled: UnlabeledFolder, raw: Mapping[str, RawCase]
) -> Iterator[ConfigurationJobs]:
    """Lock the folder of a configuration, remove its outdated files, yield its jobs, and write its manifest."""
    check_no_link_to_other_dataset(unlabeled)
    with disk_errors_reported(unlabeled), folder_lock(unlabeled):
        manifest_writer = ManifestWriter(unlabeled.manifest_file, up_to_date_cases(unlabeled, raw))
        check_not_read(unlabeled, keep=manifest_writer.manifest.cases)
        remove_other_cases(unlabeled.folder, keep=raw)
        folders.remove_left_overs(unlabeled.manifest_file)
        scratch = folders.partial_path(unlabeled.folder)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        unlabeled.folder.mkdir(exist_ok=True)
        todo = [case for name, case in raw.items() if name not in manifest_writer.manifest.cases]
        summary = f"{len(todo)} of {len(raw)} unlabeled cases to preprocess"
        print(f"{target.dataset} {target.configuration}: {summary}", flush=True)
        manifest_writer.write()
        try:
            yield ConfigurationJobs(manifest_writer, [Job(target, case, scratch, unlabeled.folder) for case in todo])
            manifest_writer.manifest.ended = True
        finally:
            for file in scratch.iterdir():  # half a case on a full disk must leave room for the manifest
                file.unlink()
            manifest_writer.write()
            shutil.rmtree(scratch, ignore_errors=True)


def _run_job_lists(job_lists: Sequence[ConfigurationJobs], processes: int) -> list[Problem]:
    """Run all jobs and print their warnings; return the problems of the raw files, without duplicates."""
    manifest_writers = {job.target: job_list.manifest_writer for job_list in job_lists for job in job_list.jobs}
    jobs = [job for job_list in job_lists for job in job_list.jobs]
    problems: dict[Problem, None] = {}
    warnings: list[tuple[str, Sequence[Path]]] = []
    results = run_jobs(jobs, processes)
    for job, result in tqdm(results, "Preprocessing unlabeled cases", len(jobs), unit="case", disable=not jobs):
        if isinstance(result, Problem):
            problems[result] = None
        else:
            manifest_writers[job.target].add(job.case.identifier, result.record)
            warnings += [(text, job.case.images) for text in result.warnings]
    for line in by_kind(sorted(warnings)):  # sorted: cases finish in any order
        print(line, flush=True)
    return list(problems)
