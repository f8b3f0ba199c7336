"""nnU-Net's trainer with a folder lock, a run record, atomic checkpoints, and exact resume.

Limit: knows nothing of unlabeled data. A subclass calls :meth:`DurableTrainer.step_done` after each step, and says what
the run must be continued with (:meth:`DurableTrainer.run_inputs`) and what else a checkpoint holds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.folders import remove_left_overs_in
from nnunetv2_crossmatch.training.checkpoints import (
    LATEST,
    atomic_checkpoint,
    check_finite,
    check_not_all_corrupt,
    disk_full_reported,
    entries_added,
    keep_previous_checkpoints,
    load_checkpoint,
    named_tensors,
    newest_checkpoint,
    tensor_bytes,
)
from nnunetv2_crossmatch.training.distributed import from_first_process
from nnunetv2_crossmatch.training.finite import MAX_IN_A_ROW, NonFiniteCounter
from nnunetv2_crossmatch.training.interruption import StopSignals
from nnunetv2_crossmatch.training.lock import RunLock, lock_folder
from nnunetv2_crossmatch.training.record import RunRecord, check_same_inputs, new_record, read_record, write_record
from nnunetv2_crossmatch.training.requirements import check_writable, logs_to_wandb, run_folder
from nnunetv2_crossmatch.training.step_log import UNFINISHED, StepLog

SAVE_EPOCHS, SAVE_SECONDS = 10, 600.0


class DurableTrainer(nnUNetTrainer):
    """Hooks for the lock, the record, checkpoints, signals and the position within an epoch.

    Attributes:
        lock: of the output folder; None before it is locked, and in processes other than the first.
        seed: of all draws; restored when a run is continued.
        steps: the steps of the current epoch that are done.
    """

    lock: RunLock | None
    seed: int
    num_iterations_per_epoch: int

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        self.selecting_checkpoint = bool(
            plans["continue_training"]
        )  # --c: until a checkpoint is loaded, or there is none
        self.lock = self._lock_before_logging(run_folder(plans, type(self).__name__, configuration, fold))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.folder = Path(self.output_folder)
        self.record = read_record(self.folder) if self.selecting_checkpoint and self.local_rank == 0 else None
        self.resumed = False
        self.interruption = StopSignals()
        self.finite = NonFiniteCounter(self.print_to_log_file, expect_overflow=self.grad_scaler is not None)
        self.steps = StepLog()
        self.saved_at = time.monotonic()
        self.save_every = sys.maxsize  # by us: the host would save before it has noted the epoch's best score

    # The run and its folder

    @staticmethod
    def _lock_before_logging(folder: Path) -> RunLock | None:
        """Lock ``folder`` if the host is about to log to Weights & Biases: it would remove the log of a run there.

        Otherwise the folder is locked when the training starts.

        Raises:
            InputError: the folder may not be written to, or another process trains there.
        """
        if dist.is_initialized() and dist.get_rank() != 0:
            return None
        check_writable(folder)
        return lock_folder(folder) if logs_to_wandb() else None

    def run_training(self) -> None:
        """Train as nnU-Net does; SIGTERM and SIGINT end the run after the step, with a checkpoint."""
        with self.interruption.handled():
            try:
                with disk_full_reported(self.folder / LATEST):
                    super().run_training()
            finally:
                self.stop_loaders()

    def lock_folder(self) -> None:
        """Lock the output folder, or raise if another process trains there; remove what a killed one left."""
        if self.local_rank == 0:
            self.lock = self.lock or lock_folder(self.folder)
            remove_left_overs_in(self.folder)

    def on_train_start(self) -> None:
        """Start as nnU-Net does, with the folder locked."""
        self.lock_folder()
        if self.selecting_checkpoint and self.local_rank == 0:
            check_not_all_corrupt(self.folder)
        self.selecting_checkpoint = False
        super().on_train_start()
        self.steps_per_epoch = self.num_iterations_per_epoch
        self.saved_at = time.monotonic()

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """The data sets of nnU-Net, after a check that a resumed run has the inputs that it began with."""
        training, validation = super().get_tr_and_val_datasets()
        if self.local_rank == 0:
            self.write_run_record(new_record(self.seed, self.run_inputs(training.identifiers, validation.identifiers)))
        return training, validation

    def run_inputs(self, training: Iterable[str], validation: Iterable[str]) -> dict[str, Any]:
        """Nested plain values that must not change while the run lasts."""
        return {}

    def write_run_record(self, now: RunRecord) -> None:
        """Write the record of this run; a resumed run must have the same inputs, a new one has no checkpoints yet."""
        if not self.resumed:
            keep_previous_checkpoints(self.folder, self.print_to_log_file)
        elif self.record is not None:
            check_same_inputs(self.folder, self.record, now)
            if self.record.versions != now.versions:
                self.print_to_log_file(f"Versions were {self.record.versions}, now {now.versions}.")
        write_record(self.folder, now)

    # Epochs and steps

    def on_epoch_start(self) -> None:
        """As nnU-Net; from now on a signal waits for the end of the step."""
        self.interruption.deferring = True
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        """As nnU-Net, for the remaining steps of the epoch."""
        super().on_train_epoch_start()
        self.num_iterations_per_epoch = self.steps_per_epoch - len(self.steps)

    def step_done(self, values: dict, gradient_norm: torch.Tensor | None = None) -> dict:
        """Count, log and save after a training step, given its scalars (``loss`` and others); returns them."""
        loss = torch.as_tensor(values["loss"])
        in_a_row = self.finite.count(loss, loss if gradient_norm is None else gradient_norm)
        if in_a_row >= MAX_IN_A_ROW:
            raise self._not_finite(in_a_row)
        self.steps.add(values)
        self._after_each_step()
        return values

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net; restores the full length of an epoch."""
        self.num_iterations_per_epoch = self.steps_per_epoch
        super().on_train_epoch_end(train_outputs)

    def validation_step(self, batch: dict) -> dict:
        """The host's."""
        result = super().validation_step(batch)
        self._after_each_step()
        return result

    def on_epoch_end(self) -> None:
        """As nnU-Net, then saves ``checkpoint_latest`` if it is due."""
        self.steps = StepLog()
        super().on_epoch_end()
        if self.current_epoch < self.num_epochs and (self.current_epoch % SAVE_EPOCHS == 0 or self._save_is_due()):
            self.save_latest()

    def on_train_end(self) -> None:
        """As nnU-Net; a signal that arrived meanwhile ends the process now that everything is saved."""
        super().on_train_end()
        if self.interruption.received is not None:
            raise SystemExit(self.interruption.exit_code)
        self.interruption.deferring = False

    def _after_each_step(self) -> None:
        self._stop_if_signaled()
        if self._save_is_due():
            self.save_latest()

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= SAVE_SECONDS

    def _stop_if_signaled(self) -> None:
        """Save and end the process if a signal arrived; other processes give the first one time to save."""
        if self.interruption.received is None:
            return
        if self.local_rank != 0:
            return self.interruption.exit_after_grace_period()
        self.save_latest()
        place = f"epoch {self.current_epoch}, {len(self.steps)} of {self.steps_per_epoch} steps"
        fate = "nothing is saved (--disable_checkpointing)" if self.disable_checkpointing else "continue with --c"
        self.print_to_log_file(f"{self.interruption.received.name}: stopped at {place}; {fate}.")
        raise SystemExit(self.interruption.exit_code)

    def stop_loaders(self) -> None:
        """End the workers of both loaders; nothing if there are none."""
        self._stop_loader(self.dataloader_train)
        self._stop_loader(self.dataloader_val)

    @staticmethod
    def _stop_loader(loader: Any) -> None:
        if isinstance(loader, MultiThreadedAugmenter):
            loader._finish()

    def _not_finite(self, in_a_row: int) -> InputError:
        last = newest_checkpoint(self.folder, self.print_to_log_file)
        good = f"{last.file.name}, epoch {last.next_epoch}" if last else "none"
        detail = f"{in_a_row} steps in a row in epoch {self.current_epoch}; last good checkpoint: {good}"
        fix = "continue with --c; if it happens again, train anew with a smaller learning rate (token lr)"
        return InputError(Problem("loss or gradient not finite", self.folder, detail, fix))

    # Checkpoints

    def save_latest(self) -> None:
        """Save the state between two steps, or between two epochs, as ``checkpoint_latest.pth``."""
        self.current_epoch -= 1  # the host stores the number of the epoch after the current one
        try:
            self.save_checkpoint(str(self.folder / LATEST))
        finally:
            self.current_epoch += 1
        self.saved_at = time.monotonic()

    def save_checkpoint(self, filename: str) -> None:
        """Save nnU-Net's checkpoint atomically, never with weights that are not finite."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        file, weights, log = Path(filename), self.network.state_dict(), self.logger.get_checkpoint()
        extra = self.extra_entries()
        for tensors in (weights, dict(named_tensors(extra))):
            check_finite(tensors, file)
        needed = tensor_bytes([weights, self.optimizer.state_dict(), extra])
        if len(self.steps):
            log[UNFINISHED] = self.steps.fetched()
        try:
            with atomic_checkpoint(file, needed) as temporary, temporary.open("wb") as stream:
                with entries_added(extra):
                    super().save_checkpoint(stream)  # by name torch.save would not tell why it failed
        finally:
            log.pop(UNFINISHED, None)

    def extra_entries(self) -> dict[str, Any]:
        """Entries of a checkpoint beside the host's."""
        return {}

    def restore_extra_entries(self, file: Path) -> None:
        """Restore what :meth:`extra_entries` saved into ``file``."""

    def load_checkpoint(self, filename_or_checkpoint: Any = None, checkpoint: Any = None) -> None:
        """Load a checkpoint without running foreign code; with ``--c`` the newest readable one of all.

        Args:
            filename_or_checkpoint: the file.
            checkpoint: the same; what nnU-Net's main branch calls it after 2.8.1 (pull request 3047).
        """
        file = Path(checkpoint if filename_or_checkpoint is None else filename_or_checkpoint)
        if self.selecting_checkpoint:
            self.lock_folder()
            file = Path(from_first_process(str(self._newest()) if self.local_rank == 0 else ""))
            self.selecting_checkpoint, self.resumed = False, True
        else:
            load_checkpoint(file)
        super().load_checkpoint(str(file))
        self.restore_extra_entries(file)
        log = self.logger.get_checkpoint()
        self.steps = StepLog(log.pop(UNFINISHED, ()))
        for curve in log.values():
            del curve[self.current_epoch :]

    def _newest(self) -> Path:
        found = newest_checkpoint(self.folder, self.print_to_log_file)
        if found is None:
            detail = "none can be read; what was there is kept as *.corrupt"
            raise InputError(Problem("no checkpoint", self.folder, detail, "train anew without --c"))
        self.print_to_log_file(f"Continuing from {found.file.name}, epoch {found.next_epoch}: the newest readable one.")
        return found.file
