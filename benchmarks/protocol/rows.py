"""Which trainings a protocol consists of: its rows, their seeds and steps, and the trainer names that spell them.

Limit: plain values; nothing is read, written or run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nnunetv2_crossmatch.methods.settings import TRAINER_NAME, Settings, settings_from_name

ROWS = ("supervised_steps", "supervised_compute", "crossmatch", "upper_bound")
TITLES = {
    "supervised_steps": "supervised, equal steps",
    "supervised_compute": "supervised, equal time",
    "crossmatch": "CrossMatch",
    "upper_bound": "supervised, all training cases labeled",
}
MEASURED_STEPS = 20
MEASURED_EPOCHS = 2  # the first one starts workers, tunes kernels and tries the memory; the last one counts
VALIDATION_ITERATIONS = 5  # informs the curves only, on training cases: with fold all there are no others
SUPERVISED = ("iterations", "optimizer", "learning_rate", "batch")  # all that a supervised step depends on


@dataclass(frozen=True)
class Pace:
    """Seconds of one training step."""

    crossmatch: float
    supervised: float


@dataclass(frozen=True)
class Length:
    """How long a CrossMatch training is: a number of steps, or minutes of which the pace makes steps."""

    steps: int | None
    minutes: float | None

    def steps_at(self, pace: Pace) -> int:
        """Steps that fit; at least one."""
        return self.steps or max(1, int((self.minutes or 0) * 60 / pace.crossmatch))


@dataclass(frozen=True)
class Run:
    """One training.

    ``control`` names the supervised run of equal steps; ``labeled_all``: every training case is labeled.
    """

    row: str
    variant: str
    seed: int
    trainer: str
    steps: int
    seconds: float
    control: str
    labeled_all: bool = False

    @property
    def group(self) -> str:
        """What the seeds of one row have in common; a file name."""
        return f"{self.row}_{self.variant}".rstrip("_")

    @property
    def name(self) -> str:
        """Name of the run; a file name."""
        return f"{self.group}_seed{self.seed}"


def settings_of(trainer: str) -> Settings:
    """The settings in a trainer's name; validation is short unless the name says how long."""
    settings = settings_from_name(trainer)
    if settings.validation_iterations != Settings().validation_iterations:
        return settings
    return replace(settings, validation_iterations=VALIDATION_ITERATIONS)


def control_of(settings: Settings) -> Settings:
    """The supervised training beside ``settings``: the host's step, same batch, optimizer and learning rate."""
    kept = {name: getattr(settings, name) for name in (*SUPERVISED, "validation_iterations")}
    return Settings(unsupervised=0.0, **kept)


def variant_of(settings: Settings) -> str:
    """The tokens in which ``settings`` differ from the default, without those that every run of a protocol sets."""
    default = Settings()
    lengths = {name: getattr(default, name) for name in ("epochs", "iterations", "validation_iterations")}
    unsupervised = settings.unsupervised or default.unsupervised
    shown = replace(settings, seed=None, diagnose=0, unsupervised=unsupervised, **lengths)
    return shown.trainer_name.removeprefix(TRAINER_NAME).removeprefix("_")


def with_length(settings: Settings, steps: int) -> Settings:
    """``settings`` for a run of about ``steps`` steps: whole epochs, so that the learning rate ends at zero."""
    iterations = min(settings.iterations, steps)
    return replace(settings, iterations=iterations, epochs=steps // iterations)


def leaders(trainers: Sequence[str]) -> dict[str, Settings]:
    """Per distinct control the first trainer that needs it: the pace of this one counts for all that share it."""
    found: dict[str, Settings] = {}
    for trainer in trainers:
        settings = settings_of(trainer)
        found.setdefault(control_of(settings).trainer_name, settings)
    return found


def measuring(leader: Settings, length: Length) -> dict[str, str]:
    """Trainers that measure a :class:`Pace`, by its fields."""
    short = {
        "epochs": MEASURED_EPOCHS,
        "iterations": min(MEASURED_STEPS, length.steps or MEASURED_STEPS),
        "validation_iterations": 1,
        "seed": 0,
    }
    both = {"crossmatch": leader, "supervised": control_of(leader)}
    return {name: replace(settings, **short).trainer_name for name, settings in both.items()}


def plan_runs(
    trainers: Sequence[str],
    seeds: Sequence[int],
    rows: Iterable[str],
    length: Length,
    paces: Mapping[str, Pace],
    diagnose: bool = False,
) -> list[Run]:
    """All trainings, seed by seed, each once.

    Args:
        trainers: names; length and seed in them are replaced.
        rows: of :data:`ROWS`.
        paces: by the names of the controls, as :func:`leaders` gives them.
        diagnose: log the true Dice of the pseudo-labels.
    """
    chosen: dict[str, Run] = {}
    for seed in seeds:
        for trainer in trainers:
            settings = replace(settings_of(trainer), diagnose=int(diagnose))
            pace = paces[control_of(settings).trainer_name]
            for row in (row for row in ROWS if row in set(rows)):
                run = _run(row, settings, seed, length, pace)
                chosen.setdefault(run.name, run)
    return list(chosen.values())


def _run(row: str, settings: Settings, seed: int, length: Length, pace: Pace) -> Run:
    steps = length.steps_at(pace)
    own = settings if row == "crossmatch" else control_of(settings)
    seconds = pace.crossmatch if row == "crossmatch" else pace.supervised
    if row in ("supervised_compute", "upper_bound"):
        steps = max(1, int(steps * pace.crossmatch / pace.supervised))
    final = with_length(replace(own, seed=seed), steps)
    taken = final.epochs * final.iterations
    control = f"{ROWS[0]}_{variant_of(control_of(settings))}".rstrip("_") + f"_seed{seed}"
    every = row == "upper_bound"
    return Run(row, variant_of(own), seed, final.trainer_name, taken, taken * seconds, control, every)
