"""Which trainings a protocol consists of: its rows, their seeds and lengths, and the trainer names that spell them.

All rows of a comparison have the same number of epochs, with iterations of their own: the learning rate falls per
epoch, so that all end at the same fraction of it. Limit: plain values; nothing is read, written or run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.protocol.trainers import (
    DEFAULT,
    changed,
    control_of,
    epochs_of,
    iterations_of,
    labeled_only,
    method_of,
    shortly_validated,
    timed,
    variant_of,
)
from nnunetv2_crossmatch.errors import InputError, Problem

SEMI_SUPERVISED = "semi_supervised"
CONTINUED = "self_training_continued"
SEMI_SUPERVISED_FIRST = "self_training_semi_supervised"
SELF_TRAINING = {"self_training": 0, "self_training_weighted": 1, CONTINUED: 1, SEMI_SUPERVISED_FIRST: 1}
"""Rows of two trainings, with the fold of the second one: every case once, or labeled ones half of the time."""
LEARN_UNLABELED = (SEMI_SUPERVISED, SEMI_SUPERVISED_FIRST)
"""Rows that the trainers' own steps are taken in."""
ROWS = ("supervised_steps", "supervised_compute", *SELF_TRAINING, SEMI_SUPERVISED, "upper_bound")
USUAL_ROWS = ("supervised_steps", "supervised_compute", SEMI_SUPERVISED, "upper_bound")
TITLES = {
    "supervised_steps": "supervised, equal steps",
    "supervised_compute": "supervised, equal time",
    "self_training": "self-training",
    "self_training_weighted": "self-training, labeled cases half of the time",
    CONTINUED: "the same, the second training from the first one's weights",
    "crossmatch": "CrossMatch",
    "upper_bound": "supervised, all training cases labeled",
}
EPOCH_STEPS, EPOCHS, FEWEST_STEPS = 250, 12, 10
STUDENT_SEED = 1000
"""Added to the seed of a row for the second training of self-training."""
CONTINUED_RATE = 0.003
"""Initial learning rate of a second training that begins with the first one's weights."""


@dataclass(frozen=True)
class Times:
    """Seconds of one training step by trainer, and of the prediction of all unlabeled cases, of one machine."""

    step: Mapping[str, float]
    prediction: float = 0.0

    def step_of(self, trainer: str) -> float:
        """Seconds of one step of a trainer of any length and seed, on the average of its run."""
        alone, both = labeled_only(trainer), self.step[timed(trainer)]
        return alone * self.step[timed(control_of(trainer))] + (1 - alone) * both if alone else both


@dataclass(frozen=True)
class Budget:
    """What every row may take: the time of so many steps of the default CrossMatch, or minutes."""

    steps: int | None
    minutes: float | None

    def seconds(self, times: Times) -> float:
        """Seconds of one row."""
        return self.steps * times.step_of(DEFAULT) if self.steps else (self.minutes or 0) * 60

    def default_steps(self, times: Times) -> int:
        """Steps of the default CrossMatch in it; at least one."""
        return self.steps or max(1, int(self.seconds(times) / times.step_of(DEFAULT)))

    def epochs(self, times: Times) -> int:
        """Epochs of every training: of 250 steps for the default CrossMatch; in shorter runs 12, if each has 10 steps.

        With fewer epochs the learning rate would end near its start.
        """
        steps = self.default_steps(times)
        return max(1, steps // EPOCH_STEPS, min(EPOCHS, steps // FEWEST_STEPS))


@dataclass(frozen=True)
class Run:
    """One trained row and seed.

    ``control`` names the supervised run of equal steps; ``labeled_all``: every training case is labeled. ``teacher``:
    the trainer whose predictions of the unlabeled cases are labels, too, in the data set with the number
    ``predicted``; ``steps`` and ``seconds`` are then those of both trainings, and the prediction counts.
    """

    row: str
    variant: str
    seed: int
    trainer: str
    steps: int
    seconds: float
    control: str
    labeled_all: bool = False
    teacher: str = ""
    predicted: int = 0
    fold: str = "all"

    @property
    def group(self) -> str:
        """What the seeds of one row have in common; a file name."""
        return group_name(self.row, self.variant)

    @property
    def name(self) -> str:
        """Name of the run; a file name."""
        return f"{self.group}_seed{self.seed}"

    @property
    def title(self) -> str:
        """The row in a table."""
        return f"{TITLES.get(self.row, self.row)} {self.variant}".strip()


def group_name(row: str, variant: str) -> str:
    """A row with its variant, as a file name."""
    return f"{row}_{variant}".rstrip("_")


def trainers_to_time(trainers: Sequence[str], rows: Iterable[str]) -> list[str]:
    """Names whose step times a plan needs, each once: the default's, the controls' and those of the rows."""
    needed = [DEFAULT, *(control_of(trainer) for trainer in trainers)]
    needed += trainers if set(rows) & set(LEARN_UNLABELED) else []
    return list(dict.fromkeys(timed(trainer) for trainer in needed))


def plan_runs(
    trainers: Sequence[str],
    seeds: Sequence[int],
    rows: Iterable[str],
    budget: Budget,
    times: Times,
    diagnose: bool = False,
    planned: Sequence[Run] = (),
) -> list[Run]:
    """All trainings, seed by seed, each once; one that was ``planned`` before keeps its length.

    Args:
        trainers: names; length and seed in them are replaced.
        rows: of :data:`ROWS`.
        diagnose: log the true Dice of the pseudo-labels.

    Raises:
        InputError: the budget is too small for an epoch of a row.
    """
    wanted = set(rows)
    planner = _Planner(budget, times, diagnose, planned)
    before = {run.name: run for run in planned}
    chosen: dict[str, Run] = {}
    for seed in seeds:
        for trainer in trainers:
            for run in planner.runs(shortly_validated(trainer), seed, [row for row in ROWS if row in wanted]):
                chosen.setdefault(run.name, before.get(run.name, run))
    return list(chosen.values())


class _Planner:
    """Lengths of runs within one budget; numbers the data sets with predicted labels in the order of their need."""

    def __init__(self, budget: Budget, times: Times, diagnose: bool, planned: Sequence[Run]) -> None:
        self.times, self.diagnose = times, diagnose
        self.seconds, self.epochs = budget.seconds(times), budget.epochs(times)
        self.equal_steps = budget.default_steps(times)
        self.predicted = {run.teacher: run.predicted for run in planned if run.teacher}

    def runs(self, trainer: str, seed: int, rows: Sequence[str]) -> Iterator[Run]:
        """The runs of a trainer and its controls."""
        control = control_of(trainer)
        own = changed(trainer, diagnose=int(self.diagnose))
        for row in rows:
            if row in SELF_TRAINING:
                yield self._self_training(row, own if row == SEMI_SUPERVISED_FIRST else control, control, seed)
            elif row == SEMI_SUPERVISED:
                yield self._run(method_of(trainer), own, seed, self._steps(own, self.seconds))
            else:
                steps = self.equal_steps if row == "supervised_steps" else self._steps(control, self.seconds)
                yield self._run(row, control, seed, steps)

    def _steps(self, trainer: str, seconds: float) -> int:
        return int(seconds / self.times.step_of(trainer))

    def _length(self, row: str, trainer: str, seed: int, steps: int) -> str:
        """The trainer for about ``steps`` steps: whole epochs."""
        if steps < self.epochs:
            detail = f"{row}: {max(0, steps)} steps of {trainer} fit, there are {self.epochs} epochs"
            raise InputError(
                Problem("budget too small", "", detail, "raise --steps or --minutes, or leave the row out")
            )
        return changed(trainer, seed=seed, epochs=self.epochs, iterations=steps // self.epochs)

    def _run(self, row: str, trainer: str, seed: int, steps: int) -> Run:
        final = self._length(row, trainer, seed, steps)
        taken = epochs_of(final) * iterations_of(final)
        seconds = taken * self.times.step_of(trainer)
        variant = variant_of(trainer)
        return Run(row, variant, seed, final, taken, seconds, self._control(trainer, seed), row == "upper_bound")

    def _self_training(self, row: str, first: str, control: str, seed: int) -> Run:
        """Half of the time for the teacher; of the other half the prediction is taken, the student has the rest."""
        half = self.seconds / 2
        teacher = self._length(row, first, seed, self._steps(first, half))
        left = self._steps(control, half - self.times.prediction)
        learner = changed(control, learning_rate=CONTINUED_RATE) if row == CONTINUED else control
        student = self._length(row, learner, seed + STUDENT_SEED, left)
        taken = [epochs_of(one) * iterations_of(one) for one in (teacher, student)]
        seconds = taken[0] * self.times.step_of(first) + taken[1] * self.times.step_of(control) + self.times.prediction
        number = self.predicted.setdefault(teacher, len(self.predicted) + 1)
        fold = str(SELF_TRAINING[row])
        name = f"self_training_{method_of(first)}" if row == SEMI_SUPERVISED_FIRST else row
        run = Run(name, variant_of(first), seed, student, sum(taken), seconds, self._control(control, seed))
        return Run(**{**vars(run), "teacher": teacher, "predicted": number, "fold": fold})

    @staticmethod
    def _control(trainer: str, seed: int) -> str:
        return f"{group_name(ROWS[0], variant_of(control_of(trainer)))}_seed{seed}"
