"""Methods that are a table: streams of perturbed views, and rows in which one stream learns from another's labels.

Limit: one network for all streams; what the streams and rows are is in the modules of the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.learning.cutmix import Box, draw_boxes, draw_donors
from nnunetv2_crossmatch.learning.exchange import any_process
from nnunetv2_crossmatch.learning.execution import (
    Drawn,
    run_joint,
    run_sequential,
    run_stacked,
    with_boxes,
    with_orientations,
)
from nnunetv2_crossmatch.learning.labeling import Labeling
from nnunetv2_crossmatch.learning.losses import Criterion, dice_classes
from nnunetv2_crossmatch.learning.memory import fits_in_memory, free_memory, is_out_of_memory
from nnunetv2_crossmatch.learning.moving_average import draw_flip, mean_probability, update_average
from nnunetv2_crossmatch.learning.orientation import Orientation, draw_orientations
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.learning.pseudo_labels import reference_label
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK, StreamTable
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss
from nnunetv2_crossmatch.methods.method import Method, Passes, Values
from nnunetv2_crossmatch.methods.table_settings import CONTRADICTIONS, TableSettings
from nnunetv2_crossmatch.methods.tokens import spelled


class TableMethod(Method):
    """Base of the methods that are a table; a method has :meth:`table`, and :meth:`perturbations` if it needs any.

    Attributes:
        stacked: whether all streams run in one decoder call; None until the first step has tried.
        average: moving average of the network that labels the weak view, or None.
    """

    Settings = TableSettings
    settings: TableSettings
    remedy = "labeledmix0p5 or a higher tau"

    def __init__(self, settings: TableSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.stacked: bool | None = {"stacked": True, "sequential": False}.get(settings.execution)
        self.average: nn.Module | None = None
        remedies = settings.keep, bool(settings.align), bool(settings.soft_labels)
        self.labeling = Labeling(task.channels, task.regions, *remedies)

    @classmethod
    def problems(cls, settings: Any, task: Task) -> list[Problem]:
        """Settings of which one leaves nothing for the other, and a task that one of them cannot judge."""
        tokens = [*spelled(settings), f"joint{settings.joint}"]  # 1 is a method's default, too
        problems = [
            Problem("settings contradict each other", settings.trainer_name, detail, "leave one of them out")
            for together, detail in CONTRADICTIONS.items()
            if all(any(token.startswith(one) for token in tokens) for one in together)
        ]
        if settings.align and task.ignore:
            detail = "align1 compares with whole volumes, and an ignore label says that these are annotated in part"
            problems.append(Problem("setting without data", settings.trainer_name, detail, "leave it out"))
        return problems

    def build(self, network: nn.Module, another: Callable[[], nn.Module]) -> None:
        """Add the moving average if the settings ask for one."""
        if self.settings.ema:
            self.average = another().requires_grad_(False)

    def start(self, network: nn.Module) -> None:
        """Begin the moving average with the network's weights."""
        if self.average is not None:
            self.average.load_state_dict(network.state_dict())

    def after_step(self, step: Step) -> None:
        """Move the average towards the network, thresholds and shifts towards the labels."""
        if step.pseudo_labels is not None:
            self.labeling.update(step.pseudo_labels, step.class_shares)
        if self.average is not None:
            update_average(self.average, step.network, self.settings.ema)

    def table(self) -> StreamTable:
        """Streams and rows."""
        raise TypeError(f"{type(self).__name__} has no table")

    def table_of_step(self, rng: np.random.Generator) -> StreamTable:
        """The table of one step; ``rng`` is equal in all processes, which sum its losses."""
        return self.table()

    def passes(self) -> Passes:
        """Of stacked streams: views are encoded once, teachers decoded without gradient, or run before the others."""
        settings, table = self.settings, self.table_of_step(np.random.default_rng(0))
        before = 1 + settings.mirror_teacher if settings.ema or settings.mirror_teacher else 0
        if before:
            table = replace(table, labeled_before=table.teachers[:1])
        views, students, teachers = set(table.views.values()), table.students, table.computed_teachers
        return Passes(1 + len(views), before, 1 + len(students), before + len(teachers))

    def perturbations(self) -> Mapping[str, FeatureDropout]:
        """Feature perturbations by the name that streams use."""
        return {}

    def backward(self, step: Step) -> Values:
        """Draw, paste the boxes, run all streams; gradients of L_sup + weight * L_unsup."""
        loss = self.unsupervised_loss(step, self.table_of_step(step.shared_rng))
        loss.orientations = self.draw_orientations(step)
        loss.boxes, drawn = self.draw(step, loss.table)
        loss.donors = self.draw_donors(step, loss)
        self.label_before(step, loss)
        step.images = with_boxes(with_orientations(step.images, loss.orientations), loss.boxes, loss.donors)
        values = self._run_joint(step, drawn, loss) if self.settings.joint else self._run(step, drawn, loss)
        step.pseudo_labels = loss.teacher_labels
        return values

    def _run(self, step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> Values:
        if self.stacked is None:
            self.stacked = self._stacked_fits(step, drawn, loss)
        if self.stacked:
            labels = dict(loss.labels)
            try:
                return loss.values(run_stacked(step, drawn, loss), step.weight)
            except Exception as error:
                if not self._may_go_on_sequentially(step, error):
                    raise
            loss.begin_again(labels)
            free_memory(step.network)
            self.stacked = self._told_to_be_sequential(step)
        return loss.values(run_sequential(step, drawn, loss), step.weight)

    def _may_go_on_sequentially(self, step: Step, error: Exception) -> bool:
        # Several processes would have to agree in every step, by an exchange that waits for the device.
        return self.settings.execution == "auto" and not step.distributed and is_out_of_memory(error)

    @staticmethod
    def _told_to_be_sequential(step: Step) -> bool:
        step.log("Not enough GPU memory for all streams at once: they run one after the other.")
        return False

    def _run_joint(self, step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> Values:
        total = run_joint(step, drawn, loss)
        return {"loss": total, "agreement": loss.agreement()} if len(loss.table.labelers) > 1 else {"loss": total}

    def unsupervised_loss(self, step: Step, table: StreamTable) -> UnsupervisedLoss:
        """The loss of ``table``, nothing computed yet."""
        tau = 0.0 if self.settings.joint else self.settings.tau_at(step.progress, self.task.foreground)
        return UnsupervisedLoss(table, self.criterion(step.distributed, step.compiled), partial(self.labeling, tau=tau))

    def criterion(self, distributed: bool, compiled: bool = False) -> Criterion:
        """H of the rows; ``distributed``: its sums run over all processes; ``compiled``: by ``torch.compile``."""
        settings, task = self.settings, self.task
        return Criterion(
            task.regions,
            dice_classes(settings.classes, task.channels, task.regions),
            settings.absent,
            settings.criterion == "dicece",
            settings.temperature,
            distributed,
            compiled,
        )

    @property
    def strong_views(self) -> list[str]:
        """Views with orientations and CutMix boxes of their own."""
        return [view for view in self.unlabeled_views if view != WEAK]

    def draw(self, step: Step, table: StreamTable) -> tuple[dict[str, list[Box | None]], Drawn]:
        """CutMix boxes of the strong views and feature perturbations of the streams, as plain values."""
        images = step.images[WEAK]
        rows, _, *patch_size = images.shape
        boxes = {view: draw_boxes(step.rng, rows, patch_size, self.settings.cutmix) for view in self.strong_views}
        shapes, dropouts = step.network.feature_shapes(rows, patch_size), self.perturbations()
        drawn = {
            name: dropouts[kind].draw(shapes, step.generator, images.device)
            for name in (*table.teachers, *table.students)
            if (kind := table.streams[name].perturbation) is not None
        }
        return boxes, drawn

    def draw_orientations(self, step: Step) -> dict[str, list[Orientation]]:
        """Orientations of the samples of the strong views; none unless the settings ask for them."""
        if not self.settings.geometry:
            return {}
        rows, _, *patch_size = step.images[WEAK].shape
        draw = partial(draw_orientations, step.rng, rows, patch_size, self.task.spacing)
        return {view: draw() for view in self.strong_views}

    def draw_donors(self, step: Step, loss: UnsupervisedLoss) -> dict[str, list[int | None]]:
        """The labeled image of each CutMix box, or None; its reference labels go with it."""
        probability, labeled = self.settings.labeled_mix, len(step.images[LABELED])
        if not probability:
            return {}
        known = reference_label(step.full_target, self.task.channels, self.task.regions)
        loss.references = self.labeling.reference(known)
        return {view: draw_donors(step.rng, boxes, labeled, probability) for view, boxes in loss.boxes.items()}

    def draw_flips(self, step: Step) -> list[tuple[int, ...]]:
        """Axes that are flipped in each image of the weak view whose mean labels it."""
        return [(), draw_flip(step.rng, self.task.dimensions)] if self.settings.mirror_teacher else [()]

    def label_before(self, step: Step, loss: UnsupervisedLoss) -> None:
        """Label the weak view by the moving average and the mean over a flip, where the settings ask for them."""
        if self.average is None and not self.settings.mirror_teacher:
            return
        flips = self.draw_flips(step)
        network = step.network if self.average is None else self.average
        with step.autocast():
            probability = mean_probability(network, step.images[WEAK], flips, self.task.regions)
        teacher = loss.table.teachers[0]
        loss.labels[teacher] = loss.label(probability)
        loss.table = replace(loss.table, labeled_before=(teacher,))

    def table_of_trial(self, table: StreamTable) -> StreamTable:
        """The table that needs most memory of those that may be drawn; ``table`` is that of the step."""
        return table

    def decisions(self) -> dict[str, Any]:
        """The execution, once ``auto`` has chosen one."""
        return {} if self.settings.execution != "auto" or self.stacked is None else {"stacked": self.stacked}

    def decide_as(self, decisions: Mapping[str, Any]) -> None:
        """Keep the execution of the run that is continued."""
        if self.settings.execution == "auto":
            self.stacked = decisions.get("stacked", self.stacked)

    def _stacked_fits(self, step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> bool:
        """Try one stacked step, without exchange between processes; whether the memory suffices in all of them."""
        trial, device = step.without_exchange(), step.images[WEAK].device
        trial.weight = 1.0
        trial_loss = replace(
            loss, table=self.table_of_trial(loss.table), criterion=self.criterion(False, step.compiled)
        )
        trial_loss.labels = dict(loss.labels)
        fits = False
        try:
            if trial_loss.table != loss.table:
                drawn = self.draw(trial, trial_loss.table)[1]  # of the same random numbers, anew
            fits = fits_in_memory(lambda: run_stacked(trial, drawn, trial_loss), step.network, step.stateless)
        finally:  # also with an error of another kind, or the other processes would wait for this one
            stacked = not any_process(not fits, device)
        return stacked or self._told_to_be_sequential(step)
