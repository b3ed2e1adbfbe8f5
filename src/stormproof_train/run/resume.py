"""Where a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Checkpoint
from stormproof.distributed.rank import is_rank_zero
from stormproof.lightning.find_callback import find_callback
from stormproof_train.config.plan import Resume
from stormproof_train.console import print_line
from stormproof_train.errors import UserError
from stormproof_train.run.batch_sharding import describe_batch_sharding
from stormproof_train.run.crash_loop import check_restart_budget
from stormproof_train.run.folder import RunFolder


def find_recovery(callbacks: Sequence[Callback]) -> CheckpointRecovery | None:
    """The one that saves and finds the run's checkpoints; None where the user wants none."""
    recoveries = [callback for callback in callbacks if isinstance(callback, CheckpointRecovery)]
    if len(recoveries) > 1:
        raise UserError("callbacks: there is more than one stormproof.CheckpointRecovery; one run needs one")
    return recoveries[0] if recoveries else None


def find_resume_checkpoint(
    recovery: CheckpointRecovery | None, folder: RunFolder, resume: Resume, max_restarts_without_progress: int | None
) -> Checkpoint | None:
    """The newest good checkpoint, verified; None at a start.

    Args:
        recovery: finds it.
        folder: of the run.
        resume: whether there must be one.
        max_restarts_without_progress: without progress, after which the run is not started again; None for no limit.

    Raises:
        UserError: if there is none and should be one.
        DamagedError: if none of those that are there is good.
        CrashLoopError: if the run was started again too often and came no further.
    """
    checkpoint = _find_newest(recovery, folder, resume)
    record = folder.read_record()
    if record is not None:
        attempts = record["attempts"]
        if not is_rank_zero():  # which may have begun this one; all are to refuse, or the others would wait for rank 0
            attempts = [attempt for attempt in attempts if attempt["end"] is not None]
        check_restart_budget(attempts, checkpoint.step if checkpoint else 0, max_restarts_without_progress, folder.path)
    return checkpoint


def _find_newest(recovery: CheckpointRecovery | None, folder: RunFolder, resume: Resume) -> Checkpoint | None:
    checkpoint = None
    if recovery is not None:
        recovery.latest_checkpoint()
        checkpoint = recovery.resumed_from
    if checkpoint is not None:
        return checkpoint
    fix = f"start anew under another name (name=…), or remove {folder.path}"
    if folder.has_trained and recovery is None:
        raise UserError(
            f"the run {folder.path} was stopped, and without stormproof.CheckpointRecovery among its callbacks it "
            f"cannot go on: {fix}"
        )
    if folder.has_trained:
        raise UserError(f"the run {folder.path} has trained before, and its checkpoints are gone: {fix}")
    if resume == "must":
        raise UserError(f"resume=must, and the run {folder.path} has no checkpoint to go on from")
    return None


class TrainingStartRecorder(Callback):
    """Tells the run folder, before the first batch, that from here on there is something to lose; and takes its leave.

    Where several ranks or batches share a step, it says how. By then the first checkpoint is there. Lightning spends
    ten microseconds a step on each callback, used or not.

    Args:
        folder: of the run.
        batch_size: samples of an optimizer step, over all ranks; None where nobody says.
    """

    def __init__(self, folder: RunFolder, batch_size: int | None) -> None:
        self._folder = folder
        self._batch_size = batch_size

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Writes it down."""
        if trainer.is_global_zero:
            world_size, accumulate_grad_batches = trainer.world_size, trainer.accumulate_grad_batches
            recovery = find_callback(trainer, CheckpointRecovery)
            skip_reasons = (
                {}
                if recovery is None
                else {checkpoint.name: checkpoint.reason for checkpoint in recovery.skipped_checkpoints}
            )
            self._folder.record_training_start(trainer.global_step, world_size, accumulate_grad_batches, skip_reasons)
            if world_size * accumulate_grad_batches > 1:
                print_line(describe_batch_sharding(trainer, self._batch_size))
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (set in __init__)
        trainer.callbacks = [callback for callback in callbacks if callback is not self]  # pyright: ignore[reportAttributeAccessIssue]


def print_resume_step(checkpoint: Checkpoint | None) -> None:
    """On the console, unless it begins."""
    if checkpoint is not None:
        print_line(f"going on from step {checkpoint.step} ({checkpoint.path.name})")


def describe_resume(recovery: CheckpointRecovery | None) -> str:
    """What becomes of a run that is stopped now, for a sentence's end."""
    checkpoints = recovery.store.read_checkpoints() if recovery is not None else []
    return f"the same command goes on from step {checkpoints[-1].step}" if checkpoints else "nothing was saved"
