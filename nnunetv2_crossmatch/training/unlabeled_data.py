"""nnU-Net's trainer with unlabeled cases: preprocessed if needed, loaded with the labeled ones, recorded as inputs.

Limit: data only; the method decides what is learned from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.class_shares import class_shares
from nnunetv2_crossmatch.data.diagnosis import DatasetWithReferenceLabels, preprocess_reference_labels, reference_folder
from nnunetv2_crossmatch.data.loader import (
    bytes_of_batch,
    make_augmenter,
    nnunet_loaders_without_workers,
    seed_everything,
)
from nnunetv2_crossmatch.data.npz_dataset import writable_dataset_class
from nnunetv2_crossmatch.data.preprocessing import (
    is_preprocessed,
    labeled_checksums,
    preprocess_unlabeled,
    raw_checksums,
    trainable_cases,
)
from nnunetv2_crossmatch.data.unlabeled_folder import Reading
from nnunetv2_crossmatch.data.views import WeakStrongViews, authors_intensity_transforms, with_deterministic_blur
from nnunetv2_crossmatch.learning.streams import LABELED
from nnunetv2_crossmatch.methods.settings import CommonSettings
from nnunetv2_crossmatch.training.distributed import wait_for_first_process
from nnunetv2_crossmatch.training.parallel import ParallelTrainer
from nnunetv2_crossmatch.training.record import RunRecord, checksums
from nnunetv2_crossmatch.training.requirements import (
    check_cases,
    check_folds,
    check_labels,
    check_samples_per_process,
    check_splits,
    preprocess_command,
)
from nnunetv2_crossmatch.training.start_from import origin_of

DESCRIBES_DATA = ("channel_names", "labels", "regions_class_order")


class UnlabeledDataTrainer(ParallelTrainer):
    """Hooks for the unlabeled cases.

    Attributes:
        settings: of the run.
        unlabeled_views: names of the views that the loader makes of each unlabeled crop.
        unlabeled_cases: names of the preprocessed unlabeled cases.
        drawn_cases: those of them that the current epoch draws from.
        steps_done: number of the next step in the run.
        class_shares: share of each class or region in the labeled volumes; empty if they are annotated in parts.
        reading: mark that the unlabeled cases are read, in the first process.
    """

    settings: ClassVar[CommonSettings] = CommonSettings()
    unlabeled_views: tuple[str, ...]
    unlabeled_cases: tuple[str, ...] | list[str] = ()
    drawn_cases: list[str]
    labeled_loader: nnUNetDataLoader
    dataloader_train: Any
    steps_done: int
    batch_size: int
    class_shares: Mapping[str, float] = MappingProxyType({})
    reading: Reading | None = None
    dataset_class: type[nnUNetBaseDataset]

    def initialize(self) -> None:
        """Initialize as nnU-Net, with labeled cases that may be augmented in place."""
        super().initialize()
        self.dataset_class = writable_dataset_class(self.dataset_class)

    def _set_batch_size_and_oversample(self) -> None:
        planned = self.configuration_manager.configuration
        planned["batch_size"] = self.settings.batch or max(planned["batch_size"], 2)
        super()._set_batch_size_and_oversample()
        unlabeled = self.settings.unlabeled_batch or planned["batch_size"]
        if self.settings.unsupervised:
            check_samples_per_process(unlabeled, self.processes)
        self.unlabeled_batch_size = self.share_of(unlabeled)
        mixes = self.settings.unsupervised and getattr(self.settings, "cutmix", 0)
        if self.unlabeled_batch_size < 2 and mixes:
            self.print_to_log_file("CutMix is off: it needs at least 2 unlabeled samples per process")

    @staticmethod
    def get_training_transforms(*arguments: Any, **options: Any) -> BasicTransform:
        """Transforms of nnU-Net, with a deterministic blur."""
        return with_deterministic_blur(nnUNetTrainer.get_training_transforms(*arguments, **options))

    def on_train_start(self) -> None:
        """Preprocess and check the unlabeled cases, then start as nnU-Net does."""
        check_folds(self.fold, self.configuration_name, Path(self.preprocessed_dataset_folder))
        self.lock_folder()
        if self.settings.unsupervised:
            self.unlabeled_cases = self._ready_unlabeled_cases()
        super().on_train_start()

    def run_training(self) -> None:
        """As inherited; the unlabeled cases are not read afterwards."""
        try:
            super().run_training()
        finally:
            if self.reading is not None:
                self.reading.release()

    def _ready_unlabeled_cases(self) -> list[str]:
        arguments = self.plans_manager, self.configuration_name
        prepared = self._prepare_unlabeled_cases() if self.local_rank == 0 else []
        wait_for_first_process()
        cases = prepared or trainable_cases(*arguments, verify=False)
        self.print_to_log_file(f"{len(cases)} unlabeled cases.")
        return cases

    def _prepare_unlabeled_cases(self) -> list[str]:
        """Preprocess the cases if that was not done yet, and verify the files; many cases take hours."""
        arguments = self.plans_manager, self.configuration_name
        if not is_preprocessed(*arguments):
            self.print_to_log_file("Unlabeled cases are not preprocessed yet; doing it now.")
            names = self.plans_manager.dataset_name, self.plans_manager.plans_name
            preprocess_unlabeled(*names, [self.configuration_name], default_num_processes)
        self.reading = Reading(self._unlabeled_folder())
        cases = trainable_cases(*arguments, verify=bool(self.settings.verify))
        if self.settings.diagnose:
            preprocess_reference_labels(self.plans_manager, self.configuration_manager, cases)
        return cases

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Loaders of nnU-Net, the training one joined with the unlabeled views."""
        with nnunet_loaders_without_workers() as workers:
            training, validation = super().get_dataloaders()
        if self.settings.unsupervised:
            self.class_shares = class_shares(training.data_loader._data, self.label_manager)
            self.drawn_cases = self.cases_of_epoch()
        self.labeled_loader = training.data_loader
        augmenter = make_augmenter(
            validation.data_loader,
            None,
            (self.seed, self.local_rank, 1),
            self.current_epoch * self.num_val_iterations_per_epoch,
            -(-workers // 2),
            self.device.type == "cuda",
            batch_bytes=self._bytes_of_batch(0),
        )
        return self._training_augmenter(workers), augmenter

    def _training_augmenter(self, workers: int) -> Any:
        """Batches from the next step on, the unlabeled images from :attr:`drawn_cases`."""
        unlabeled = self._unlabeled_loader() if self.settings.unsupervised else None
        return make_augmenter(
            self.labeled_loader,
            unlabeled,
            (self.seed, self.local_rank, 0),
            self.current_epoch * self.settings.iterations + len(self.steps),
            workers,
            self.device.type == "cuda",
            bool(self.settings.diagnose or self.settings.gpu_views),
            self.settings.first_unsupervised,
            self._bytes_of_batch(self.unlabeled_batch_size if unlabeled else 0, self.label_maps),
            self.of_labels() if unlabeled else None,
        )

    def cases_of_epoch(self) -> list[str]:
        """The unlabeled cases that the current epoch draws from: all of them, unless a method says otherwise."""
        return list(self.unlabeled_cases)

    def on_train_epoch_start(self) -> None:
        """As inherited, with a loader of other unlabeled cases if the epoch draws from others."""
        super().on_train_epoch_start()
        if not self.unlabeled_cases or (cases := self.cases_of_epoch()) == self.drawn_cases:
            return
        self.drawn_cases = cases
        self._stop_loader(self.dataloader_train)
        self.dataloader_train = self._training_augmenter(get_allowed_n_proc_DA())
        self.print_to_log_file(f"{len(cases)} of {len(self.unlabeled_cases)} unlabeled cases are drawn from now on.")

    @property
    def label_maps(self) -> int:
        """How many maps :meth:`of_labels` makes of each labeled image."""
        return 0

    def of_labels(self) -> Callable[[Any], torch.Tensor] | None:
        """What workers make maps of a batch's target with, or None."""
        return None

    def _bytes_of_batch(self, unlabeled: int, maps: int = 0) -> int:
        views = 1 if self.settings.gpu_views else len(self.unlabeled_views)
        planned = self.configuration_manager
        channels = determine_num_input_channels(self.plans_manager, planned, self.dataset_json)
        return bytes_of_batch(self.batch_size, unlabeled, views, channels, planned.patch_size, maps)

    def do_split(self) -> tuple[list[str], list[str]]:
        """As nnU-Net, after a check of the file of folds."""
        if self.fold != "all":
            cases = {file.stem for file in Path(self.preprocessed_dataset_folder).glob("*.pkl")}
            check_splits(Path(self.preprocessed_dataset_folder_base) / "splits_final.json", cases, self.fold)
        split: tuple[list[str], list[str]] = super().do_split()
        return split

    def run_inputs(self, training: Iterable[str], validation: Iterable[str]) -> dict[str, Any]:
        """Settings, plans, images, labels and cases, and the model that the run began with, if any.

        Raises:
            InputError: cases of the fold, or labels of its validation cases, are missing.
        """
        plans = {**self.plans_manager.plans, "configurations": self.configuration_manager.configuration}
        labels, ending = (
            Path(self.preprocessed_dataset_folder_base) / "gt_segmentations",
            self.dataset_json["file_ending"],
        )
        command = preprocess_command(self.plans_manager, self.configuration_name)
        check_cases(Path(self.preprocessed_dataset_folder), list(training), list(validation), command)
        check_labels(labels, validation, ending, command)
        return {
            "settings": asdict(self.settings),
            "plans": plans,
            "dataset.json": {name: self.dataset_json.get(name) for name in DESCRIBES_DATA},
            "training": checksums(labels, training, ending),
            "images": labeled_checksums(self.plans_manager.dataset_name, self.dataset_json, training),
            "validation": sorted(validation),
            "started_from": origin_of(self.folder),
            "unlabeled": raw_checksums(self.plans_manager, self.configuration_name) if self.unlabeled_cases else {},
        }

    def write_run_record(self, now: RunRecord) -> None:
        """As inherited; settings that the package did not have when the run began had their default values.

        Raw images of labeled cases that were not there then, or are not now, are not compared.
        """
        if self.record is not None:
            defaults = asdict(type(self.settings)())
            self.record.inputs["settings"] = defaults | self.record.inputs.get("settings", {})
            if not (self.record.inputs.get("images") and now.inputs["images"]):
                now.inputs["images"] = self.record.inputs.get("images") or now.inputs["images"]
                self.record.inputs["images"] = now.inputs["images"]
        super().write_run_record(now)

    def _unlabeled_folder(self) -> Path:
        return folders.unlabeled_folder(self.plans_manager.dataset_name, self.configuration_manager.data_identifier)

    def _unlabeled_loader(self) -> nnUNetDataLoader:
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        masks = self.configuration_manager.use_mask_for_norm
        transforms = self.get_training_transforms(
            patch_size, rotation, None, mirror_axes, dummy_2d, use_mask_for_norm=masks
        )
        strong = authors_intensity_transforms(len(patch_size)) if self.settings.views == "authors" else None
        count = len(self.unlabeled_views) - 1
        self.views = WeakStrongViews(transforms, strong, count, geometry_only=bool(self.settings.gpu_views))
        folder = self._unlabeled_folder()
        cases = nnUNetDatasetBlosc2(str(folder), self.drawn_cases)  # the format of the labeled ones may differ
        if self.settings.diagnose:
            cases = DatasetWithReferenceLabels(cases, reference_folder(folder))
        loader = nnUNetDataLoader(
            cases,
            self.unlabeled_batch_size,
            initial_patch_size,
            patch_size,
            self.label_manager,
            transforms=self.views,
        )
        loader.has_ignore = False  # crops are drawn uniformly: there is no label to look for
        return loader

    def _on_device(self, batch: dict) -> tuple[dict[str, torch.Tensor], Any]:
        """Images by view, labeled first, and the target, on the device."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.device, non_blocking=True)

        unlabeled = move(batch["unlabeled"])  # whole: a copy of a slice of pinned memory would block
        if self.settings.gpu_views:
            unlabeled = self._views_of(unlabeled[:, 0], move(batch["unlabeled_segmentation"]))
        # Contiguous, all views alike: for the compiler, strides are a part of the kind of tensor.
        views = zip(self.unlabeled_views, (view.contiguous() for view in unlabeled.unbind(1)), strict=True)
        target = batch["target"]
        target = [move(scale) for scale in target] if isinstance(target, list) else move(target)
        return {LABELED: move(batch["data"]), **dict(views)}, target

    def _views_of(self, crops: torch.Tensor, segmentations: torch.Tensor) -> torch.Tensor:
        """Views (U, views, C, S) of crops (U, C, S), made on the device as the loader's workers would make them."""
        seed_everything((self.seed, self.local_rank, 4, self.steps_done))
        views = self.views.make_all_views(crops, segmentations)
        return views.unflatten(1, (len(self.unlabeled_views), -1))
