"""From ``imagesUn`` to preprocessed unlabeled cases, and back to the names of those that are ready for training.

Limit: as many processes as asked for, on one machine; a second run on the same folder waits for the first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunetv2_crossmatch import __version__, folders
from nnunetv2_crossmatch.data.manifest import (
    Manifest,
    ManifestKeeper,
    damaged_cases,
    file_crc32,
    fresh_stamp,
    read_manifest,
    sources_changed,
)
from nnunetv2_crossmatch.data.plans_check import check_plans_file
from nnunetv2_crossmatch.data.raw_cases import RawCase, find_leaks, held_images, images_in, unlabeled_cases
from nnunetv2_crossmatch.data.unlabeled_case import Job, Target, run_jobs
from nnunetv2_crossmatch.data.unlabeled_folder import (
    Prepared,
    alone,
    describe,
    disk_faults_told,
    drop_files,
    finished_cases,
)
from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any


@dataclass(frozen=True)
class Work:
    """What is to be done for one configuration, and the keeper of its results."""

    keeper: ManifestKeeper
    jobs: list[Job]


def is_preprocessed(plans_manager: PlansManager, configuration: str) -> bool:
    """Whether a preprocessing of unlabeled cases for ``configuration`` has ended; their state is not looked at.

    A run that was killed has not ended: its scratch folder is still there.
    """
    prepared = describe(plans_manager, configuration, plans_manager.plans_name)
    return prepared.manifest_file.is_file() and not folders.partial_path(prepared.folder).exists()


def prepared_cases(plans_manager: PlansManager, configuration: str, verify: bool = True) -> list[str]:
    """Identifiers of the preprocessed unlabeled cases, sorted, after checking that they can be trained on.

    Args:
        plans_manager: the plans of the training.
        configuration: its configuration.
        verify: read every file and compare its CRC32 with the manifest (hundreds of MB/s); otherwise only the
            manifest, the plans, and names and sizes of the raw images are compared.

    Raises:
        InputError: nothing was preprocessed, or it is damaged, was made with other plans or from other raw images, or
            holds a labeled or held-out image. Every problem is listed, each with the command that mends it.
    """
    prepared = describe(plans_manager, configuration, plans_manager.plans_name)
    manifest = read_manifest(prepared.manifest_file, prepared.command)
    if manifest.plans_hash != prepared.plans_hash:
        detail = "the plans have changed since the unlabeled cases were preprocessed"
        raise InputError(Problem("plans differ", prepared.manifest_file, detail, prepared.command))
    if not manifest.cases:
        raise InputError(Problem("no unlabeled cases", prepared.folder, "the folder is empty", prepared.command))
    problems = _stale(plans_manager.dataset_name, manifest, prepared)
    problems += _labeled_twice(manifest, prepared)
    if verify:
        damaged = damaged_cases(prepared.folder, manifest)
        faults = (fault for faults in damaged.values() for fault in faults)
        problems += [Problem("unlabeled case damaged", file, detail, prepared.command) for file, detail in faults]
    raise_if_any(problems)
    return sorted(manifest.cases)


def raw_checksums(plans_manager: PlansManager, configuration: str) -> dict[str, list[int]]:
    """CRC32 of the raw files of each preprocessed case: what the run's unlabeled data are, however compressed."""
    prepared = describe(plans_manager, configuration, plans_manager.plans_name)
    cases = read_manifest(prepared.manifest_file, prepared.command).cases
    return {name: [record.sources[file].crc32 for file in sorted(record.sources)] for name, record in cases.items()}


def _labeled_twice(manifest: Manifest, prepared: Prepared) -> list[Problem]:
    """Cases that lie among the preprocessed labeled ones too; needs no raw images."""
    labeled = prepared.folder.with_name(prepared.folder.name.removesuffix("_unlabeled"))
    doubles = manifest.cases.keys() & {file.stem for file in labeled.glob("*.pkl")}
    detail = "is among the labeled cases as well"
    return [Problem("leak", prepared.folder, f"{name} {detail}", "remove it from imagesUn") for name in sorted(doubles)]


def _stale(dataset: str, manifest: Manifest, prepared: Prepared) -> list[Problem]:
    """What differs between the raw images and the manifest, and leaks; nothing if the raw images are not there."""
    raw, dataset_json = _raw_cases(dataset, required=False)
    if not raw:
        return []
    new, gone = sorted(raw.keys() - manifest.cases.keys()), sorted(manifest.cases.keys() - raw.keys())
    changed = [
        name
        for name in sorted(raw.keys() & manifest.cases.keys())
        if sources_changed(manifest.cases[name], raw[name].sources)
    ]
    groups = {"not preprocessed yet": new, "no longer there": gone, "changed": changed}
    details = [f"{len(names)} {kind} ({_some(names)})" for kind, names in groups.items() if names]
    where = folders.images_unlabeled(dataset)
    stale = [Problem("raw images differ from preprocessed ones", where, "; ".join(details), prepared.command)]
    return (stale if details else []) + _leaks(dataset, dataset_json, raw, manifest)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _raw_cases(dataset: str, required: bool = True) -> tuple[dict[str, RawCase], dict]:
    """Raw unlabeled cases and dataset.json; if not ``required``, no cases where the raw data set is absent."""
    description = folders.preprocessed_folder() / dataset / "dataset.json"
    if not description.is_file():
        remedy = f"nnUNetv2_plan_and_preprocess -d {dataset} --verify_dataset_integrity"
        raise InputError(Problem("data set not planned", description, "file missing", remedy))
    dataset_json = load_json(str(description))
    if not required and not _has_raw(dataset):
        return {}, dataset_json
    counts = _images_per_case(dataset, dataset_json)
    return unlabeled_cases(folders.images_unlabeled(dataset), dataset_json["file_ending"], counts), dataset_json


def _images_per_case(dataset: str, dataset_json: dict) -> set[int]:
    """How many image files a case may have: as the labeled ones do, for a file can hold several channels (RGB, 4d).

    Where the labeled images are elsewhere, up to one per channel; reading them tells.
    """
    raw_folder, names = folders.raw_folder() / dataset, dataset_json.get("channel_names") or dataset_json["modality"]
    listed = _listed_images(dataset, dataset_json)
    labeled = listed or images_in(raw_folder / "imagesTr", dataset_json["file_ending"])
    return {len(files) for files in labeled.values()} or set(range(1, len(names) + 1))


def _listed_images(dataset: str, dataset_json: dict) -> dict[str, list[Path]]:
    """Labeled images by identifier where dataset.json lists them, wherever they are."""
    if "dataset" not in dataset_json:
        return {}
    listed = get_filenames_of_train_images_and_targets(str(folders.raw_folder() / dataset), dataset_json)
    return {name: [Path(file) for file in entry["images"]] for name, entry in listed.items()}


def _has_raw(dataset: str) -> bool:
    """Whether raw unlabeled images can be looked at: a machine for training may hold the preprocessed ones only."""
    try:
        return any(folders.images_unlabeled(dataset).iterdir())
    except (InputError, FileNotFoundError):
        return False


def _leaks(dataset: str, dataset_json: dict, raw: Mapping[str, RawCase], manifest: Manifest) -> list[Problem]:
    """Unlabeled images that are labeled or held out, by name or by bytes."""
    held = held_images(folders.raw_folder() / dataset, dataset_json["file_ending"])
    held |= _listed_images(dataset, dataset_json)
    known = {name: stamp for record in manifest.cases.values() for name, stamp in record.sources.items()}
    return find_leaks(raw.values(), held, lambda file: fresh_stamp(file, known.get(file.name)).crc32, file_crc32)


def well_named_cases(dataset: str) -> list[str]:
    """Identifiers of the raw unlabeled cases, judged by the names of their files alone.

    Raises:
        InputError: the data set is not planned, or images are missing or misnamed; all of them are named.
    """
    return list(_raw_cases(dataset)[0])


def preprocess_unlabeled(dataset: str, plans_identifier: str, configurations: Sequence[str], processes: int) -> None:
    """Preprocess ``imagesUn`` of ``dataset`` into ``<data_identifier>_unlabeled`` for each configuration.

    Finished cases are kept, changed and damaged ones are redone, removed ones are dropped. An interrupted run leaves
    only whole cases and is completed by the next one.

    Args:
        dataset: full name of the data set, ``DatasetXXX_Name``.
        plans_identifier: name of the plans file without its ending.
        configurations: names of configurations; none: all but cascade stages.
        processes: worker processes.

    Raises:
        InputError: plans or images are missing or wrong, or a worker died; all bad images are named, the others done.
    """
    plans_manager = _plans_manager(dataset, plans_identifier)
    chosen = _configurations(plans_manager, plans_identifier, configurations)
    raw, dataset_json = _raw_cases(dataset)
    raise_if_any(_leaks(dataset, dataset_json, raw, Manifest("", __version__)))
    with ExitStack() as stack:
        works = []
        for configuration in sorted(chosen):  # one order for all runs, so that two never wait for each other
            prepared = describe(plans_manager, configuration, plans_identifier)
            works.append(stack.enter_context(_work(Target(dataset, plans_identifier, configuration), prepared, raw)))
        problems = _run(works, processes)
    raise_if_any(problems)


def _plans_manager(dataset: str, plans_identifier: str) -> PlansManager:
    file = Target(dataset, plans_identifier, "").plans_file
    if not file.is_file():
        remedy = f"nnUNetv2_plan_and_preprocess -d {dataset}, or name other plans with -p"
        raise InputError(Problem("plans missing", file, "file missing", remedy))
    check_plans_file(file)
    return PlansManager(str(file))


def _configurations(plans_manager: PlansManager, plans_identifier: str, asked: Sequence[str]) -> list[str]:
    """The configurations asked for, or all without a previous stage; one of those that share their data."""
    available = plans_manager.available_configurations
    problems = [
        Problem("configuration unknown", plans_identifier, name, f"choose from {', '.join(available)}")
        for name in asked
        if name not in available
    ]
    raise_if_any(problems)
    managers = {name: plans_manager.get_configuration(name) for name in asked or available}
    wanted = {name: manager for name, manager in managers.items() if asked or manager.previous_stage_name is None}
    by_data = {manager.data_identifier: name for name, manager in reversed(wanted.items())}
    return [name for name in wanted if name in by_data.values()]


@contextmanager
def _work(target: Target, prepared: Prepared, raw: Mapping[str, RawCase]) -> Iterator[Work]:
    """What is to be done for a target, with its folder locked, rid of what is out of date, and recorded at the end."""
    with disk_faults_told(prepared), alone(prepared):
        keeper = ManifestKeeper(prepared.manifest_file, finished_cases(prepared, raw))
        drop_files(prepared.folder, keep=raw)
        scratch = folders.partial_path(prepared.folder)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        prepared.folder.mkdir(exist_ok=True)
        todo = [case for name, case in raw.items() if name not in keeper.manifest.cases]
        count = f"{len(todo)} of {len(raw)} unlabeled cases to preprocess"
        print(f"{target.dataset} {target.configuration}: {count}", flush=True)
        try:
            yield Work(keeper, [Job(target, case, scratch, prepared.folder) for case in todo])
        finally:
            keeper.write()
            shutil.rmtree(scratch, ignore_errors=True)


def _run(works: Sequence[Work], processes: int) -> list[Problem]:
    """Do all jobs; what is wrong with the raw files, each told once."""
    keepers = {job.target: work.keeper for work in works for job in work.jobs}
    jobs = [job for work in works for job in work.jobs]
    problems: dict[Problem, None] = {}
    outcomes = run_jobs(jobs, processes)
    for job, outcome in tqdm(outcomes, "Preprocessing unlabeled cases", len(jobs), unit="case", disable=not jobs):
        if isinstance(outcome, Problem):
            problems[outcome] = None
        else:
            keepers[job.target].add(job.case.identifier, outcome)
    return list(problems)
