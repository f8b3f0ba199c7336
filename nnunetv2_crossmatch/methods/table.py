"""Methods that are a table: streams of perturbed views, and rows in which one stream learns from another's labels.

Limit: one network for all streams; what the streams and rows are is in the modules of the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from nnunetv2_crossmatch.errors import Problem
from nnunetv2_crossmatch.learning.cutmix import Box, draw_boxes, draw_donors
from nnunetv2_crossmatch.learning.exchange import any_process
from nnunetv2_crossmatch.learning.execution import (
    Drawn,
    fits_in_memory,
    run_joint,
    run_sequential,
    run_stacked,
    with_boxes,
    with_orientations,
)
from nnunetv2_crossmatch.learning.labeling import Labeling
from nnunetv2_crossmatch.learning.losses import Criterion, dice_classes
from nnunetv2_crossmatch.learning.moving_average import draw_flip, mean_probability, update_average
from nnunetv2_crossmatch.learning.orientation import Orientation, draw_orientations
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.learning.pseudo_labels import reference_label
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import LABELED, WEAK, StreamTable
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss
from nnunetv2_crossmatch.methods.method import Method, Passes, Values
from nnunetv2_crossmatch.methods.settings import HOST, OURS, RELEASED, CommonSettings, setting, switch
from nnunetv2_crossmatch.methods.tokens import spelled

CONTRADICTIONS = {
    ("joint1", "execsequential"): "joint1 makes one batch of all images, execsequential takes them one after the other",
    ("joint1", "keep"): "joint1 counts every voxel, keep only the surest",
    ("joint1", "softlabels1"): "joint1 is under nnU-Net's loss, which takes hard labels, softlabels1 makes soft ones",
    ("keep", "tauend"): "keep counts a share of the voxels, tauend those above a threshold",
    ("softlabels1", "absentskip"): "no class is absent from soft labels, absentskip leaves absent ones out",
}
"""What no run can have both of: beginnings of tokens, and why."""


@dataclass(frozen=True)
class TableSettings(CommonSettings):
    """Settings of pseudo-labels, losses and execution."""

    tau: float | None = setting(
        None,
        "tau",
        "confidence from which a pseudo-label counts; 0.85 with one foreground class, 0.5 with more (paper: 0.95)",
        f"paper, IV-2; {OURS}",
        low=0,
        high=1,
    )
    tau_end: float | None = setting(
        None, "tauend", "confidence threshold at the end of the run, reached linearly from tau", OURS, low=0, high=1
    )
    temperature: float = setting(1.0, "temp", "softmax temperature of the students", RELEASED, low=0.01)
    absent: str = setting(
        "count",
        "absent",
        "a class without valid pseudo-labels: count its Dice loss of 1, which has hardly a gradient, or leave it out "
        "of the mean, which gives the others more weight",
        RELEASED,
        choices=("count", "skip"),
    )
    classes: str = setting(
        "auto",
        "classes",
        "classes of the Dice: auto is foreground with one foreground class, all with several",
        RELEASED,
        choices=("auto", "foreground", "all"),
    )
    criterion: str = setting(
        "dice",
        "criterion",
        "distance of student and pseudo-label; dicece adds cross-entropy on the valid voxels",
        f"paper, III-E; {RELEASED}",
        choices=("dice", "dicece"),
    )
    cutmix: float = setting(0.5, "cutmix", "probability that a strong view receives a box", RELEASED, low=0, high=1)
    labeled_mix: float = setting(
        0.0,
        "labeledmix",
        "probability that such a box comes from a labeled image, with its true label, instead of an unlabeled one",
        "BCP (CVPR 2023); ours",
        low=0,
        high=1,
    )
    geometry: int = switch(
        "geometry", "1: flips and quarter turns of its own for every strong view", "nnFilterMatch (arXiv 2509.19746)"
    )
    ema: float = setting(
        0.0,
        "ema",
        "the weak view's labels are those of a moving average of the weights, of which this share stays in a step; 0: "
        "of the network itself",
        "Mean Teacher (NIPS 2017)",
        low=0,
        high=1,
    )
    mirror_teacher: int = switch(
        "mirrorteacher", "1: the weak view's labels are the mean over the image and one random flip of it", HOST
    )
    keep: float = setting(
        0.0,
        "keep",
        "share of the voxels of every class that counts, the surest ones, instead of those above tau; 0: by tau",
        "CBST (ECCV 2018)",
        low=0,
        high=1,
    )
    align: int = switch(
        "align",
        "1: the labels' logits of a class are shifted while its amount is not within a fifth of the labeled volumes'",
        "DARS (ICCV 2021), AdaMatch (ICLR 2022)",
    )
    soft_labels: int = switch(
        "softlabels", "1: students learn the sharpened probabilities instead of hard labels", "MixMatch (NeurIPS 2019)"
    )
    joint: int = switch(
        "joint",
        "1: labeled and pseudo-labeled images are one batch under the host's loss, on all heads; tau, u, absent, "
        "classes, criterion and temp have no part in it",
        "nnFilterMatch (arXiv 2509.19746)",
    )
    execution: str = setting(
        "auto",
        "exec",
        "all streams in one decoder call, or one after the other in less memory; auto tries the first",
        f"paper, III-F; {OURS}",
        choices=("auto", "stacked", "sequential"),
    )

    def tau_at(self, progress: float, foreground_classes: int) -> float:
        """Confidence threshold at ``progress`` (0 to 1) of a run, with that many foreground classes or regions."""
        from_data = 0.85 if foreground_classes == 1 else 0.5
        tau = from_data if self.tau is None else self.tau
        end = tau if self.tau_end is None else self.tau_end
        return tau + (end - tau) * progress


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
        tokens = spelled(settings)
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
        run = run_stacked if self.stacked else run_sequential
        return loss.values(run(step, drawn, loss), step.weight)

    def _run_joint(self, step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> Values:
        total = run_joint(step, drawn, loss)
        return {"loss": total, "agreement": loss.agreement()} if len(loss.table.labelers) > 1 else {"loss": total}

    def unsupervised_loss(self, step: Step, table: StreamTable) -> UnsupervisedLoss:
        """The loss of ``table``, nothing computed yet."""
        tau = 0.0 if self.settings.joint else self.settings.tau_at(step.progress, self.task.foreground)
        return UnsupervisedLoss(table, self.criterion(step.distributed), partial(self.labeling, tau=tau))

    def criterion(self, distributed: bool) -> Criterion:
        """H of the rows; ``distributed``: its sums run over all processes."""
        settings, task = self.settings, self.task
        return Criterion(
            task.regions,
            dice_classes(settings.classes, task.channels, task.regions),
            settings.absent,
            settings.criterion == "dicece",
            settings.temperature,
            distributed,
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

    def _stacked_fits(self, step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> bool:
        """Try one stacked step, without exchange between processes; whether the memory suffices in all of them."""
        trial = step.without_exchange()
        trial.weight = 1.0
        trial_loss = replace(loss, criterion=self.criterion(False))
        trial_loss.labels = dict(loss.labels)
        fits = fits_in_memory(lambda: run_stacked(trial, drawn, trial_loss), step.network)
        stacked = not any_process(not fits, step.images[WEAK].device)
        if not stacked:
            step.log("Not enough GPU memory for all streams at once: they run one after the other.")
        return stacked
