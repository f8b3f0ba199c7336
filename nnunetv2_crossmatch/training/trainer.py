"""``nnUNetTrainerSemiSupervised``: nnU-Net's trainer, learning from labeled and unlabeled images together.

Only hooks are overridden; the method defines what is learned from the unlabeled images. Limit: U-Nets, no cascade.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.backends import cudnn

from nnunetv2_crossmatch.data.diagnosis import mean_dice
from nnunetv2_crossmatch.data.loader import seed_everything
from nnunetv2_crossmatch.data.planned_network import network_sizes, planned_network
from nnunetv2_crossmatch.data.plans_check import check_plans, label_manager_of
from nnunetv2_crossmatch.errors import InputError, Problem, UnsupportedError
from nnunetv2_crossmatch.learning.exchange import average_gradients, copy_from_first
from nnunetv2_crossmatch.learning.memory import lack_of_memory_told
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.methods.method import Method, Optimizer
from nnunetv2_crossmatch.training.amount import amount_warnings, amounts
from nnunetv2_crossmatch.training.checkpoints import METHOD_STATE, load_checkpoint
from nnunetv2_crossmatch.training.distributed import from_first_process, mean_over_processes
from nnunetv2_crossmatch.training.progress import draw_curves
from nnunetv2_crossmatch.training.requirements import (
    check_compiler,
    check_contents,
    check_requirements,
    prepare_compiler,
)
from nnunetv2_crossmatch.training.unlabeled_data import UnlabeledDataTrainer

GRADIENT_NORM = 12  # the host's
HOST_CURVES = frozenset(LocalLogger().my_fantastic_logging)
METHOD_DECISIONS = "method_decisions"


class nnUNetTrainerSemiSupervised(UnlabeledDataTrainer):
    """Base of the trainers for ``nnUNetv2_train -tr``, which ``named`` makes of a method and settings.

    Attributes:
        method_class: what is learned from unlabeled images.
        settings: of the run.
        method: of this run.
        steps_done: number of the next step in the run.
        method_optimizers: of the method's own parameters.
    """

    method_class: ClassVar[type[Method]] = Method
    initial_lr: float

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        check_contents(plans, configuration, dataset_json)
        check_requirements(plans, configuration, device)
        task = task_of(PlansManager(plans), configuration, dataset_json)
        check_settings(type(self), task)
        super().__init__(plans, configuration, fold, dataset_json, device)
        settings = self.settings
        self.num_epochs = settings.epochs
        self.num_iterations_per_epoch = settings.iterations
        self.num_val_iterations_per_epoch = settings.validation_iterations
        of_optimizer = 0.001 if settings.optimizer == "adamw" else self.initial_lr
        self.initial_lr = of_optimizer if settings.learning_rate is None else settings.learning_rate
        drawn = secrets.randbits(32) if self.record is None else self.record.seed
        self.seed = from_first_process(drawn if settings.seed is None else settings.seed)
        self.steps_done = 0
        self.method = self.method_class(settings, task)
        self.unlabeled_views = self.method.unlabeled_views
        self.method_optimizers: list[Optimizer] = []

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
        """The network of nnU-Net with separately callable encoder and decoder, and with nnU-Net's state dict."""
        check_plans(plans_manager.plans, "plans.json")
        sizes = num_input_channels, num_output_channels, enable_deep_supervision
        host = planned_network(plans_manager, configuration_manager, *sizes)
        return EncoderDecoder(host, recompute=bool(cls.settings.recompute))

    def initialize(self) -> None:
        """Initialize as nnU-Net, with seeded weights and the method's modules."""
        if self._do_i_compile():
            check_compiler()
            prepare_compiler(deterministic=self.settings.seed is not None)
        if self.settings.seed is not None:
            seed_everything((self.seed,))
        super().initialize()
        self._build_method()

    def _build_method(self) -> None:
        self.method.build(self.bare_network, self._another_network)
        self.method.to(self.device)
        copy_from_first(self.method)
        self.method_optimizers = self.method.optimizers(self._optimizer_like_main)
        self.optimizer.register_step_post_hook(self._note_main_step)

    def _another_network(self) -> torch.nn.Module:
        """A network of the same form with weights of its own; compiled in place, which leaves its keys as they are."""
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )
        if self._do_i_compile():
            network.compile()
        return network

    def _optimizer_like_main(self, module: torch.nn.Module) -> Optimizer:
        """Optimizer and schedule of ``module``, configured as those of the network."""
        network, self.network = self.network, module
        try:
            return self.configure_optimizers()
        finally:
            self.network = network

    def configure_optimizers(self) -> Optimizer:
        """SGD of nnU-Net, or AdamW, under nnU-Net's schedule."""
        if self.settings.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def run_training(self) -> None:
        """Train as nnU-Net; with a token ``seed`` cuDNN uses deterministic kernels.

        Raises:
            InputError: the GPU's memory does not suffice, among others.
        """
        repeatable = cudnn.flags(enabled=True, deterministic=True) if self.settings.seed is not None else nullcontext()
        with repeatable, lack_of_memory_told(self.folder):
            super().run_training()

    # One step

    def train_step(self, batch: dict) -> dict:
        """The method's gradients, averaged over the processes, and the optimizers' steps.

        Without unlabeled images it is the host's step.
        """
        if "unlabeled" not in batch:
            report = super().train_step(batch)
            self.steps_done += 1
            return self.step_done(report)
        step = self._step(batch)
        if step.index == self.settings.first_unsupervised:
            self.method.start(self.bare_network)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        values = self.method.backward(step)
        if self.is_ddp:
            self._average_gradients()
        gradient_norm = self._optimizer_step()
        if self.main_stepped:
            self.method.after_step(step)
        self.steps_done += 1
        return self.step_done(values | self._facts_of_labels(batch, step), gradient_norm)

    def _step(self, batch: dict) -> Step:
        images, target = self._on_device(batch)
        progress = self.steps_done / (self.num_epochs * self.settings.iterations)
        # Older torch would keep the casts that the teacher made without gradient, and the students would learn nothing.
        amp = partial(torch.autocast, "cuda", cache_enabled=False) if self.device.type == "cuda" else nullcontext
        return Step(
            network=self.local_network,
            images=images,
            target=target,
            task=self.method.task,
            supervised_loss=self.loss,
            head_loss=self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss,
            local_supervised_loss=lambda *arguments: self.local_loss()(*arguments),
            weight=self.settings.unsupervised_at(progress),
            progress=progress,
            index=self.steps_done,
            seed=self.seed,
            rank=self.local_rank,
            distributed=self.distributed,
            scale=self.grad_scaler.scale if self.grad_scaler is not None else lambda loss: loss,
            autocast=amp,
            log=self.print_to_log_file,
            class_shares=self.class_shares,
            of_labels=batch["of_labels"].to(self.device, non_blocking=True) if "of_labels" in batch else None,
            cases=[str(key) for key in batch.get("unlabeled_keys", ())],
            stateless=[p for each in self.optimizers for p in parameters_of(each) if p not in each.state],
        )

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The network's optimizer, then the method's."""
        return [self.optimizer, *(optimizer for optimizer, _ in self.method_optimizers)]

    def _average_gradients(self) -> None:
        """Average over the processes; the method's parameters count as 0 where a process has no gradient."""
        own = [p for optimizer, _ in self.method_optimizers for p in parameters_of(optimizer)]
        if any(p.grad is not None for p in own):
            for p in own:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        average_gradients([*self.network.parameters(), *own])

    def _optimizer_step(self) -> torch.Tensor:
        """Clip and step each optimizer that has gradients, as the host does; returns the largest gradient norm."""
        self.main_stepped = False
        with_gradient = [each for each in self.optimizers if any(p.grad is not None for p in parameters_of(each))]
        norms = [self._clip_and_step(optimizer) for optimizer in with_gradient]
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        return torch.stack(norms).max()

    def _clip_and_step(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """One optimizer's step, never along a gradient that is not finite; the norm before clipping."""
        scaler = self.grad_scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters_of(optimizer), GRADIENT_NORM)
        if scaler is not None:  # skips the step itself if the gradient is not finite
            scaler.step(optimizer)
        elif norm.isfinite():
            optimizer.step()
        return norm

    def _note_main_step(self, *_: Any) -> None:
        # A gradient scaler does not report a skipped step; the optimizer's own hook does, without waiting.
        self.main_stepped = True

    def _facts_of_labels(self, batch: dict, step: Step) -> dict[str, torch.Tensor]:
        """Amounts of the pseudo-labels, and in diagnosis their true Dice."""
        labels = step.pseudo_labels
        if labels is None:
            return {}
        found = amounts(labels, self.method.task.channels, self.class_shares)
        if not self.settings.diagnose:
            return found
        truth = batch["unlabeled_segmentation"].to(self.device, non_blocking=True)
        return found | {"pseudo_dice": mean_dice(labels.labels, truth, self.label_manager)}

    # Curves, checkpoints

    @property
    def curves(self) -> dict[str, list[float]]:
        """The curves beside the host's: a value per epoch by name."""
        logged = self.logger.local_logger.my_fantastic_logging
        return {name: values for name, values in logged.items() if name not in HOST_CURVES}

    @property
    def label_maps(self) -> int:
        """As many as the method needs."""
        return self.method.label_maps

    def of_labels(self) -> Callable[[Any], torch.Tensor] | None:
        """The method's."""
        return self.method.of_labels()

    def cases_of_epoch(self) -> list[str]:
        """Those that the method draws from."""
        return self.method.drawn_cases(self.unlabeled_cases, self.current_epoch / self.num_epochs)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net, and steps the schedules of the method's optimizers."""
        super().on_train_epoch_start()
        for _, schedule in self.method_optimizers:
            schedule.step(self.current_epoch)
        self.steps_done = self.current_epoch * self.settings.iterations + len(self.steps)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the means of the epoch's steps, those from before an interruption among them."""
        steps = self.steps.fetched()
        if self.settings.unsupervised:
            means = {name: mean_over_processes(values) for name, values in curve_values(steps).items()}
            steps = [{"loss": means.pop("loss")}]
            self._log_curves(means)
            weight, remedy = self.settings.unsupervised, self.method.remedy
            for line in amount_warnings(self.curves, self.current_epoch, weight, remedy):
                self.print_to_log_file(line)
        super().on_train_epoch_end(steps)

    def _log_curves(self, means: Mapping[str, float]) -> None:
        """Log every curve; the host's logger takes known names only, and one value per epoch."""
        logged = self.logger.local_logger.my_fantastic_logging
        for name in dict.fromkeys((*self.curves, *means)):
            logged.setdefault(name, [math.nan] * self.current_epoch)
            self.logger.log(name, means.get(name, math.nan), self.current_epoch)
        self.print_to_log_file(" ".join(f"{name} {value:.4f}" for name, value in means.items()))

    def on_epoch_end(self) -> None:
        """As nnU-Net, then draws the figure of the method's curves, if there are any yet."""
        super().on_epoch_end()
        if self.curves and self.local_rank == 0:
            draw_curves(self.curves, Path(self.output_folder) / "progress_crossmatch.png")

    def extra_entries(self) -> dict[str, Any]:
        """Modules and optimizers of the method, and what it has decided, if there is anything."""
        modules, optimizers = self.method.state_dict(), [each.state_dict() for each, _ in self.method_optimizers]
        state = {METHOD_STATE: {"modules": modules, "optimizers": optimizers}} if modules or optimizers else {}
        decided = self.method.decisions()
        return state | ({METHOD_DECISIONS: decided} if decided else {})

    def restore_extra_entries(self, file: Path) -> None:
        """Restore modules, optimizers and decisions of the method.

        Raises:
            InputError: the checkpoint is of a run that did not have it.
        """
        checkpoint = load_checkpoint(file, self.device)
        self.method.decide_as(checkpoint.get(METHOD_DECISIONS, {}))
        if METHOD_STATE not in self.extra_entries():
            return
        saved = checkpoint.get(METHOD_STATE)
        if saved is None:
            detail = f"it holds no state of {type(self.method).__name__}, whose training goes on from more than weights"
            fix = "continue with the trainer that wrote it, or train anew without --c"
            raise InputError(Problem("checkpoint of another method", file, detail, fix))
        self.method.load_state_dict(saved["modules"])
        for (optimizer, _), state in zip(self.method_optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)


def task_of(plans_manager: PlansManager, configuration: str, dataset_json: dict) -> Task:
    """The task that plans and ``dataset.json`` describe; raises :class:`InputError` for labels that nobody can read."""
    labels = label_manager_of(plans_manager, dataset_json)
    planned = plans_manager.get_configuration(configuration)
    patch_size, spacing = tuple(planned.patch_size), tuple(planned.spacing)
    heads, regions, ignore = labels.num_segmentation_heads, labels.has_regions, labels.has_ignore_label
    return Task(heads, regions, len(patch_size), ignore, spacing, patch_size)


def check_settings(trainer: type[nnUNetTrainerSemiSupervised], task: Task) -> None:
    """Raise :class:`UnsupportedError` if the settings of ``trainer`` are not for its method and ``task``."""
    if problems := trainer.method_class.problems(trainer.settings, task):
        raise UnsupportedError(*problems)


def check_network(
    trainer: type[nnUNetTrainerSemiSupervised], plans_manager: PlansManager, configuration: str, dataset_json: dict
) -> None:
    """Raise :class:`UnsupportedError` if ``trainer`` cannot use the planned network, which is made without memory."""
    sizes = network_sizes(plans_manager, configuration, dataset_json)
    with torch.device("meta"):
        trainer.build_network_architecture(plans_manager, plans_manager.get_configuration(configuration), *sizes)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """All parameters that ``optimizer`` changes."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def curve_values(steps: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """An epoch's values by curve. Values that are not losses may be NaN in steps without one; these are left out."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: _known([step[name] for step in steps if name in step], name) for name in names}


def _known(values: list[float], name: str) -> list[float]:
    if name.startswith("loss"):
        return values
    return [value for value in values if not math.isnan(value)] or [math.nan]
