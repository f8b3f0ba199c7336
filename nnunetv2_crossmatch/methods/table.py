"""Methods that are a table: streams of perturbed views, and rows in which one stream learns from another's labels.

Limit: one network for all streams; what the streams and rows are is in the modules of the methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunetv2_crossmatch.learning.cutmix import Box, draw_boxes
from nnunetv2_crossmatch.learning.exchange import any_process
from nnunetv2_crossmatch.learning.execution import Drawn, fits_in_memory, run_sequential, run_stacked, with_boxes
from nnunetv2_crossmatch.learning.losses import Criterion, dice_classes
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.learning.step import Step, Task
from nnunetv2_crossmatch.learning.streams import WEAK, StreamTable
from nnunetv2_crossmatch.learning.unsupervised import UnsupervisedLoss
from nnunetv2_crossmatch.methods.method import Method, Values
from nnunetv2_crossmatch.methods.settings import OURS, RELEASED, CommonSettings, setting


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
    """

    Settings = TableSettings
    settings: TableSettings

    def __init__(self, settings: TableSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.stacked: bool | None = {"stacked": True, "sequential": False}.get(settings.execution)

    def table(self) -> StreamTable:
        """Streams and rows."""
        raise TypeError(f"{type(self).__name__} has no table")

    def table_of_step(self, rng: np.random.Generator) -> StreamTable:
        """The table of one step; ``rng`` is equal in all processes, which sum its losses."""
        return self.table()

    def perturbations(self) -> Mapping[str, FeatureDropout]:
        """Feature perturbations by the name that streams use."""
        return {}

    def backward(self, step: Step) -> Values:
        """Draw, paste the boxes, run all streams; gradients of L_sup + weight * L_unsup."""
        loss = self.unsupervised_loss(step, self.table_of_step(step.shared_rng))
        loss.boxes, drawn = self.draw(step, loss.table)
        step.images = with_boxes(step.images, loss.boxes)
        if self.stacked is None:
            self.stacked = self._stacked_fits(step, drawn, loss)
        run = run_stacked if self.stacked else run_sequential
        supervised = run(step, drawn, loss)
        step.pseudo_labels = loss.teacher_labels
        return loss.values(supervised, step.weight)

    def unsupervised_loss(self, step: Step, table: StreamTable) -> UnsupervisedLoss:
        """The loss of ``table``, nothing computed yet."""
        tau = self.settings.tau_at(step.progress, self.task.foreground)
        return UnsupervisedLoss(table, self.criterion(step.distributed), tau)

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

    def draw(self, step: Step, table: StreamTable) -> tuple[dict[str, list[Box | None]], Drawn]:
        """CutMix boxes of the strong views and feature perturbations of the streams, as plain values."""
        images = step.images[WEAK]
        rows, _, *patch_size = images.shape
        strong = (view for view in self.unlabeled_views if view != WEAK)
        boxes = {view: draw_boxes(step.rng, rows, patch_size, self.settings.cutmix) for view in strong}
        shapes, dropouts = step.network.feature_shapes(rows, patch_size), self.perturbations()
        drawn = {
            name: dropouts[kind].draw(shapes, step.generator, images.device)
            for name in (*table.teachers, *table.students)
            if (kind := table.streams[name].perturbation) is not None
        }
        return boxes, drawn

    def _stacked_fits(self, step: Step, drawn: Drawn, loss: UnsupervisedLoss) -> bool:
        """Try one stacked step, without exchange between processes; whether the memory suffices in all of them."""
        trial = step.without_exchange()
        trial.weight = 1.0
        trial_loss = self.unsupervised_loss(trial, loss.table)
        trial_loss.boxes = loss.boxes
        fits = fits_in_memory(lambda: run_stacked(trial, drawn, trial_loss), step.network)
        stacked = not any_process(not fits, step.images[WEAK].device)
        if not stacked:
            step.log("Not enough GPU memory for all streams at once: they run one after the other.")
        return stacked
