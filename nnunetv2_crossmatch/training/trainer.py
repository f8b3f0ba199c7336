"""``nnUNetTrainerCrossMatch``: the host's trainer, learning from labeled and unlabeled images together.

Only host hooks are overridden; the method is in the modules that they call. Limit: U-Nets without cascade.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.backends import cudnn

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.data.diagnosis import CasesWithTruth, mean_dice, prepare_truth, truth_folder
from nnunetv2_crossmatch.data.loader import augmenter, host_in_this_process, seed_everything
from nnunetv2_crossmatch.data.npz_cases import safe_to_augment
from nnunetv2_crossmatch.data.plans_check import check_plans
from nnunetv2_crossmatch.data.unlabeled import is_preprocessed, prepared_cases, preprocess_unlabeled, raw_checksums
from nnunetv2_crossmatch.data.views import Views, authors_intensity, repeatable
from nnunetv2_crossmatch.learning.cutmix import Box, draw_boxes
from nnunetv2_crossmatch.learning.losses import Criterion, LossRow, dice_classes, drawn_rows, loss_table
from nnunetv2_crossmatch.learning.network import CrossMatchNetwork
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.learning.step import Drawn, Step, fits_in_memory, mixed
from nnunetv2_crossmatch.learning.streams import LABELED, STREAMS, STRONG_VIEWS, TEACHER, VIEWS
from nnunetv2_crossmatch.learning.unsupervised import Lesson
from nnunetv2_crossmatch.methods.settings import TRAINER_NAME, Settings, settings_from_name
from nnunetv2_crossmatch.training.distributed import (
    any_process,
    average_gradients,
    mean_over_processes,
    same_everywhere,
    wait_for_first,
)
from nnunetv2_crossmatch.training.parallel import ParallelTrainer
from nnunetv2_crossmatch.training.progress import draw_curves
from nnunetv2_crossmatch.training.record import RunRecord, checksums
from nnunetv2_crossmatch.training.requirements import (
    refuse_folds,
    refuse_idle_processes,
    refuse_missing_compiler,
    refuse_unmet,
)

CURVES = ("loss_sup", "loss_ip", "loss_tkd", "loss_dkd", "unsup_weight", "confident_share", "agreement")
PSEUDO_DICE = "pseudo_dice"
SOMETIMES = (PSEUDO_DICE, "agreement")
GRADIENT_NORM = 12  # the host's
COMPILED_VARIANTS = 64  # of one function; each set of drawn students is one, beyond torch's limit of 8 they run eagerly
DESCRIBES_DATA = ("channel_names", "labels", "regions_class_order")


class nnUNetTrainerCrossMatch(ParallelTrainer):
    """Trainer for ``nnUNetv2_train -tr``; a name with tokens makes a subclass with other settings."""

    settings = Settings()
    initial_lr: float
    dataset_class: type[nnUNetBaseDataset]

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        refuse_unmet(plans, configuration, device)
        super().__init__(plans, configuration, fold, dataset_json, device)
        settings = self.settings
        self.num_epochs = settings.epochs
        self.num_iterations_per_epoch = settings.iterations
        self.num_val_iterations_per_epoch = settings.validation_iterations
        self.initial_lr = settings.learning_rate or (0.001 if settings.optimizer == "adamw" else self.initial_lr)
        drawn = secrets.randbits(32) if self.record is None else self.record.seed
        self.seed = same_everywhere(drawn if settings.seed is None else settings.seed)
        self.steps_done = 0
        self.stacked: bool | None = {"stacked": True, "sequential": False}.get(settings.execution)
        self.unlabeled_cases: list[str] = []
        self._register_curves()

    # Set-up

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """The host's network behind the streams of CrossMatch, with the host's state dict."""
        check_plans(plans_manager.plans, "plans.json")
        host = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        rates = {"weak": cls.settings.weak_dropout, "strong": cls.settings.strong_dropout}
        kind, levels = cls.settings.dropout, cls.settings.levels
        perturbations = {name: FeatureDropout(rate, kind, levels) for name, rate in rates.items()}
        return CrossMatchNetwork(host, perturbations, recompute=bool(cls.settings.recompute))

    @staticmethod
    def get_training_transforms(*arguments: Any, **options: Any) -> BasicTransform:
        """The host's, with one way to compute the blur."""
        return repeatable(nnUNetTrainer.get_training_transforms(*arguments, **options))

    def initialize(self) -> None:
        """The host's, with seeded weights and cases that may be augmented in place."""
        if self._do_i_compile():
            refuse_missing_compiler()
            torch._dynamo.config.cache_size_limit = COMPILED_VARIANTS
        if self.settings.seed is not None:
            seed_everything((self.seed,))
        super().initialize()
        self.dataset_class = safe_to_augment(self.dataset_class)

    def _set_batch_size_and_oversample(self) -> None:
        planned = self.configuration_manager.configuration
        planned["batch_size"] = self.settings.batch or max(planned["batch_size"], 2)
        super()._set_batch_size_and_oversample()
        unlabeled = self.settings.unlabeled_batch or planned["batch_size"]
        if self.settings.unsupervised:
            refuse_idle_processes(unlabeled, self.processes)
        self.unlabeled_batch_size = self.share_of(unlabeled)
        if self.unlabeled_batch_size < 2 and self.settings.unsupervised:
            self.print_to_log_file("CutMix is off: it needs at least 2 unlabeled samples per process")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The host's SGD, or AdamW under the host's schedule."""
        if self.settings.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def run_training(self) -> None:
        """As it is; with a token ``seed`` cuDNN takes kernels that repeat themselves, not the ones that time best."""
        with cudnn.flags(enabled=True, deterministic=True) if self.settings.seed is not None else nullcontext():
            super().run_training()

    # Data

    def on_train_start(self) -> None:
        """Make sure of the unlabeled cases, then start as the host does."""
        refuse_folds(self.fold, self.configuration_name, Path(self.preprocessed_dataset_folder))
        self.claim_folder()
        if self.settings.unsupervised:
            self.unlabeled_cases = self._ready_unlabeled_cases()
        super().on_train_start()

    def _ready_unlabeled_cases(self) -> list[str]:
        arguments = self.plans_manager, self.configuration_name
        prepared = self._prepare_unlabeled_cases() if self.local_rank == 0 else []
        wait_for_first()
        cases = prepared or prepared_cases(*arguments, verify=False)
        self.print_to_log_file(f"{len(cases)} unlabeled cases.")
        return cases

    def _prepare_unlabeled_cases(self) -> list[str]:
        """Preprocess them if that was not done yet, and verify the files; takes hours where there are many."""
        arguments = self.plans_manager, self.configuration_name
        if not is_preprocessed(*arguments):
            self.print_to_log_file("Unlabeled cases are not preprocessed yet; doing it now.")
            names = self.plans_manager.dataset_name, self.plans_manager.plans_name
            preprocess_unlabeled(*names, [self.configuration_name], default_num_processes)
        cases = prepared_cases(*arguments, verify=bool(self.settings.verify))
        if self.settings.diagnose:
            prepare_truth(self.plans_manager, self.configuration_manager, cases)
        return cases

    def get_dataloaders(self) -> tuple[Any, Any]:
        """The host's loaders, the training one joined with the unlabeled views."""
        with host_in_this_process() as workers:
            training, validation = super().get_dataloaders()
        unlabeled = self._unlabeled_loader() if self.settings.unsupervised else None
        seed, pin_memory, epoch = (self.seed, self.local_rank), self.device.type == "cuda", self.current_epoch
        with_segmentation = bool(self.settings.diagnose or self.settings.gpu_views)
        first = epoch * self.settings.iterations + len(self.steps)
        first_validation = epoch * self.num_val_iterations_per_epoch
        return (
            augmenter(training.data_loader, unlabeled, (*seed, 0), first, workers, pin_memory, with_segmentation),
            augmenter(validation.data_loader, None, (*seed, 1), first_validation, -(-workers // 2), pin_memory),
        )

    def made_of(self, training: Iterable[str], validation: Iterable[str]) -> dict[str, Any]:
        """Settings, plans, labels and cases."""
        plans = {**self.plans_manager.plans, "configurations": self.configuration_manager.configuration}
        labels = Path(self.preprocessed_dataset_folder_base) / "gt_segmentations"
        return {
            "settings": asdict(self.settings),
            "plans": plans,
            "dataset.json": {name: self.dataset_json.get(name) for name in DESCRIBES_DATA},
            "training": checksums(labels, training, self.dataset_json["file_ending"]),
            "validation": sorted(validation),
            "unlabeled": raw_checksums(self.plans_manager, self.configuration_name) if self.unlabeled_cases else {},
        }

    def keep_record(self, now: RunRecord) -> None:
        """As it is; settings that the package did not have when the run began are meant at their defaults."""
        if self.record is not None:
            self.record.made_of["settings"] = asdict(Settings()) | self.record.made_of.get("settings", {})
        super().keep_record(now)

    def _unlabeled_loader(self) -> nnUNetDataLoader:
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        masks = self.configuration_manager.use_mask_for_norm
        transforms = self.get_training_transforms(
            patch_size, rotation, None, mirror_axes, dummy_2d, use_mask_for_norm=masks
        )
        strong = authors_intensity(len(patch_size)) if self.settings.views == "authors" else None
        self.views = Views(transforms, strong, later=bool(self.settings.gpu_views))
        folder = folders.unlabeled_folder(self.plans_manager.dataset_name, self.configuration_manager.data_identifier)
        cases = nnUNetDatasetBlosc2(str(folder), self.unlabeled_cases)  # whatever the labeled ones are kept in
        if self.settings.diagnose:
            cases = CasesWithTruth(cases, truth_folder(folder))
        loader = nnUNetDataLoader(
            cases,
            self.unlabeled_batch_size,
            initial_patch_size,
            patch_size,
            self.label_manager,
            transforms=self.views,
        )
        loader.has_ignore = False  # no label to look for: every crop is as good as another
        return loader

    # One step

    def train_step(self, batch: dict) -> dict:
        """One step of ``method.md``'s five; with ``unsup0`` the host's own."""
        if not self.settings.unsupervised:
            return self.step_done(super().train_step(batch))
        lesson = Lesson(self._rows(), self._criterion(), self._tau())
        images, target = self._on_device(batch)
        lesson.boxes, drawn = self._draw(images, lesson)
        images = mixed(images, lesson.boxes)
        weight = self.settings.unsupervised_at(self._progress())
        if self.stacked is None:
            self.stacked = self._stacked_fits(images, target, drawn, lesson)
        self.optimizer.zero_grad(set_to_none=True)
        if self.stacked:
            supervised = self._step(self.network).stacked(images, target, drawn, lesson, weight)
        else:
            supervised = self._step(self.local_network).sequential(images, target, drawn, lesson, weight)
            if self.is_ddp:
                average_gradients(self.network.parameters())
        gradient_norm = self._descend()
        self.steps_done += 1
        return self.step_done(lesson.report(supervised, weight) | self._diagnosis(batch, lesson), gradient_norm)

    def _diagnosis(self, batch: dict, lesson: Lesson) -> dict[str, torch.Tensor]:
        if not self.settings.diagnose:
            return {}
        truth = batch["unlabeled_segmentation"].to(self.device, non_blocking=True)
        return {PSEUDO_DICE: mean_dice(lesson.labels[TEACHER].labels, truth, self.label_manager)}

    def _on_device(self, batch: dict) -> tuple[dict[str, torch.Tensor], Any]:
        """Images by view, labeled first, and the target, on the device."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.device, non_blocking=True)

        unlabeled = move(batch["unlabeled"])  # whole: a slice of pinned memory would have to be waited for
        if self.settings.gpu_views:
            unlabeled = self._seen(unlabeled[:, 0], move(batch["unlabeled_segmentation"]))
        images = {LABELED: move(batch["data"]), **dict(zip(VIEWS, unlabeled.unbind(1), strict=True))}
        target = batch["target"]
        return images, [move(scale) for scale in target] if isinstance(target, list) else move(target)

    def _seen(self, crops: torch.Tensor, segmentations: torch.Tensor) -> torch.Tensor:
        """Views (U, 3, C, S) of moved crops (U, C, S), made here as the loader's workers would make them."""
        seed_everything((self.seed, self.local_rank, 4, self.steps_done))
        views = [self.views.seen(*sample)["image"] for sample in zip(crops, segmentations, strict=True)]
        return torch.stack(views).unflatten(1, (len(VIEWS), -1))

    def _rows(self) -> tuple[LossRow, ...]:
        """The loss table of this step; equal in all processes, which sum its losses."""
        table = loss_table(self.settings.eta)
        return drawn_rows(table, self.settings.students, np.random.default_rng((self.seed, 0, 3, self.steps_done)))

    def _draw(self, images: dict[str, torch.Tensor], lesson: Lesson) -> tuple[dict[str, list[Box | None]], Drawn]:
        """Boxes of the strong views and feature perturbations of the streams: plain values, made of seed and step."""
        entropy = np.random.SeedSequence((self.seed, self.local_rank, 2, self.steps_done))
        rng = np.random.default_rng(entropy)
        generator = torch.Generator(self.device).manual_seed(int(entropy.generate_state(1)[0]))
        rows, _, *patch_size = images[lesson.views[0]].shape
        boxes = {view: draw_boxes(rng, rows, patch_size, self.settings.cutmix) for view in STRONG_VIEWS}
        network = self._bare_network
        shapes = network.feature_shapes(rows, patch_size)
        streams = {name: STREAMS[name].perturbation for name in (*lesson.teachers, *lesson.students)}
        drawn = {
            name: network.perturbations[kind].draw(shapes, generator, self.device)
            for name, kind in streams.items()
            if kind is not None
        }
        return boxes, drawn

    def _progress(self) -> float:
        return self.steps_done / (self.num_epochs * self.settings.iterations)

    def _tau(self) -> float:
        """The confidence threshold of this step."""
        heads = self.label_manager.num_segmentation_heads
        return self.settings.tau_at(self._progress(), heads if self.label_manager.has_regions else heads - 1)

    def _criterion(self, distributed: bool | None = None) -> Criterion:
        regions = self.label_manager.has_regions
        return Criterion(
            regions,
            dice_classes(self.settings.classes, self.label_manager.num_segmentation_heads, regions),
            self.settings.absent,
            self.settings.criterion == "dicece",
            self.settings.temperature,
            self.distributed if distributed is None else distributed,
        )

    def _step(self, network: Any, supervised: Any = None) -> Step:
        scale = self.grad_scaler.scale if self.grad_scaler is not None else lambda loss: loss
        # Older torch would keep the casts that the teacher made without gradient, and the students would learn nothing.
        amp = partial(torch.autocast, "cuda", cache_enabled=False) if self.device.type == "cuda" else nullcontext
        return Step(network, supervised or self.loss, lambda loss: scale(loss).backward(), amp)

    def _descend(self) -> torch.Tensor:
        """Clip and step, as the host does, but never along a gradient that is not finite; its norm."""
        scaler = self.grad_scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        if scaler is not None:  # looks for itself whether the gradient is finite
            scaler.step(self.optimizer)
            scaler.update()
        elif norm.isfinite():
            self.optimizer.step()
        return norm

    @property
    def _bare_network(self) -> CrossMatchNetwork:
        return getattr(self.local_network, "_orig_mod", self.local_network)

    def _stacked_fits(self, images: dict[str, torch.Tensor], target: Any, drawn: Drawn, lesson: Lesson) -> bool:
        """Try one stacked step, without exchange between processes, and see whether the memory suffices in all."""
        lesson = Lesson(lesson.table, self._criterion(distributed=False), lesson.tau, lesson.boxes)
        trial = self._step(self.local_network, supervised=self.local_loss())
        fits = fits_in_memory(lambda: trial.stacked(images, target, drawn, lesson, 1.0), self.network)
        stacked = not any_process(not fits, self.device)
        if not stacked:
            self.print_to_log_file("Not enough GPU memory for all streams at once: they run one after the other.")
        return stacked

    # Curves, checkpoints

    @property
    def curves(self) -> tuple[str, ...]:
        """Names of what an epoch logs beside the host's values."""
        if not self.settings.unsupervised:
            return ()
        return (*CURVES, PSEUDO_DICE) if self.settings.diagnose else CURVES

    def _register_curves(self) -> None:
        """The host's logger takes known keys only, one value per epoch; a resumed checkpoint brings its own dict."""
        curves = self.logger.local_logger.my_fantastic_logging
        for name in self.curves:
            curves.setdefault(name, [float("nan")] * self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """The host's; draws follow from the number of steps."""
        super().on_train_epoch_start()
        self.steps_done = self.current_epoch * self.settings.iterations + len(self.steps)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the means of the epoch's steps, those from before an interruption among them."""
        steps = self.steps.fetched()
        if self.settings.unsupervised:
            means = {name: mean_over_processes(values_of(steps, name)) for name in ("loss", *self.curves)}
            steps = [{"loss": means.pop("loss")}]
            for name, value in means.items():
                self.logger.log(name, value, self.current_epoch)
            self.print_to_log_file(" ".join(f"{name} {value:.4f}" for name, value in means.items()))
        super().on_train_epoch_end(steps)

    def on_epoch_end(self) -> None:
        """The host's, and our curves beside its own."""
        super().on_epoch_end()
        if self.settings.unsupervised and self.local_rank == 0:
            logged = self.logger.local_logger.my_fantastic_logging
            draw_curves(
                {name: logged[name] for name in self.curves}, Path(self.output_folder) / "progress_crossmatch.png"
            )

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As it is; adds the curves that the checkpoint lacks."""
        super().load_checkpoint(filename_or_checkpoint)
        self._register_curves()


def values_of(steps: list[dict], name: str) -> list[float]:
    """An epoch's values of one curve; steps that have none (no foreground, no assistant drawn) are left out."""
    values = [step[name] for step in steps]
    return [value for value in values if not math.isnan(value)] or [math.nan] if name in SOMETIMES else values


@cache
def trainer_class(name: str) -> type[nnUNetTrainerCrossMatch]:
    """The trainer of that name: its settings are in the name. One class per name, so that pickling finds it again."""
    namespace = {"settings": settings_from_name(name), "__module__": __name__, "__qualname__": name}
    return cast(type[nnUNetTrainerCrossMatch], type(name, (nnUNetTrainerCrossMatch,), namespace))


def __getattr__(name: str) -> Any:
    if name.startswith(f"{TRAINER_NAME}_"):
        return trainer_class(name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
