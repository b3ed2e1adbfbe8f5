"""Finds the checkpoint from which a run resumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Checkpoint, Store
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.distributed.rank import is_rank_zero
from stormproof.lightning.find_callback import find_callback
from stormproof_train.config.settings import Resume
from stormproof_train.console import print_line
from stormproof_train.errors import CrashLoopError, ExitCode, StorageError, UserError
from stormproof_train.pluralize import pluralize
from stormproof_train.run.batch_sharding import describe_batch_sharding
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.records import AttemptRecord

MIRROR_READ_SECONDS = 20.0
"""Maximum time to retry a request to the mirror, in seconds."""


def find_recovery(callbacks: Sequence[Callback]) -> CheckpointRecovery | None:
    """Returns the callback that saves and finds checkpoints, or None without one."""
    recoveries = [callback for callback in callbacks if isinstance(callback, CheckpointRecovery)]
    if len(recoveries) > 1:
        raise UserError("callbacks: a run must not have more than one stormproof.CheckpointRecovery")
    return recoveries[0] if recoveries else None


def find_resume_checkpoint(
    recovery: CheckpointRecovery | None, folder: RunFolder, resume: Resume, max_restarts_without_progress: int | None
) -> Checkpoint | None:
    """Returns the newest valid checkpoint, or None if the run starts from the beginning.

    Args:
        recovery: Callback that finds the checkpoint.
        folder: Folder of the run.
        resume: ``must`` requires a checkpoint in the folder or its mirror. ``never`` rejects a checkpoint of
            step 1 or later there.
        max_restarts_without_progress: Maximum number of restarts in a row without progress. None for no limit.

    Raises:
        UserError: If ``must`` finds no checkpoint, or ``never`` finds one of step 1 or later.
        StorageError: If the mirror cannot be read, and ``resume`` is ``never`` or the folder has no good checkpoint.
        DamagedError: If all checkpoints are damaged.
        CrashLoopError: If the run was restarted too often without progress.
    """
    checkpoint = _find_newest(recovery, folder, resume)
    record = folder.read_record()
    if record is not None:
        attempts = record["attempts"]
        if not is_rank_zero():  # ignores the attempt that rank 0 may have begun, so that all ranks decide alike
            attempts = [attempt for attempt in attempts if attempt["end"] is not None]
        check_restart_budget(attempts, checkpoint.step if checkpoint else 0, max_restarts_without_progress, folder.path)
    return checkpoint


def _find_newest(recovery: CheckpointRecovery | None, folder: RunFolder, resume: Resume) -> Checkpoint | None:
    checkpoint = None
    if recovery is not None:
        if resume == "never":
            _check_no_progress(recovery)
        recovery.latest_checkpoint()
        checkpoint = recovery.resumed_from
    if checkpoint is not None:
        return checkpoint
    fix = f"Start a new run with name=…, or remove {folder.path}."
    if folder.has_trained and recovery is None:
        raise UserError(
            f"the run {folder.path} was stopped and cannot resume, because stormproof.CheckpointRecovery is not among "
            f"its callbacks. {fix}"
        )
    if folder.has_trained:
        raise UserError(f"the run {folder.path} has trained before, but its checkpoints are missing. {fix}")
    if resume == "must":
        mirror = None if recovery is None else recovery.mirror
        problem = (
            f"the run {folder.path} has no checkpoint"
            if mirror is None
            else f"neither the run {folder.path} nor its mirror {mirror} has a checkpoint"
        )
        raise UserError(f"resume=must, but {problem}. Set resume=auto to start a new run.")
    return None


def _check_no_progress(recovery: CheckpointRecovery) -> None:
    """Rejects a folder or a mirror with a checkpoint of step 1 or later. Downloads nothing."""
    _check_untrained(recovery.store)
    if recovery.mirror is None:
        return
    try:
        _check_untrained(Store(ObjectStorage(recovery.mirror, retry_seconds=MIRROR_READ_SECONDS)))
    except OSError as error:
        raise StorageError(
            f"The mirror {recovery.mirror} cannot be read: {error.strerror or error}. Restart the run when the mirror "
            "is available, or set checkpoints.mirror=null."
        ) from error


def _check_untrained(store: Store) -> None:
    newest_step = max((checkpoint.step for checkpoint in store.read_checkpoints()), default=0)
    if newest_step > 0:
        raise UserError(
            f"resume=never, but {store.location} has a checkpoint of step {newest_step}. Choose another name (name=…)."
        )


class TrainingStartRecorder(Callback):
    """Records the start of training in the run folder before the first batch, then removes itself from the callbacks.

    If several ranks or batches share a step, prints their numbers. The first checkpoint exists by then. Lightning
    spends ten microseconds per step on each callback, whether it does something or not.

    Args:
        folder: Folder of the run.
        batch_size: Samples per optimizer step over all ranks. None if unknown.
    """

    def __init__(self, folder: RunFolder, batch_size: int | None) -> None:
        self._folder = folder
        self._batch_size = batch_size

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Records the start."""
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
    """Prints the step from which the run resumes, if it does."""
    if checkpoint is not None:
        print_line(f"resuming from step {checkpoint.step} ({checkpoint.path.name})")


def describe_resume(recovery: CheckpointRecovery | None) -> str:
    """Returns the end of the message for a run that is stopped now."""
    checkpoints = recovery.store.read_checkpoints() if recovery is not None else []
    return f"the same command resumes from step {checkpoints[-1].step}" if checkpoints else "nothing was saved"


_NON_CRASH_CODES = {ExitCode.USER_MISTAKE, ExitCode.INTERRUPTED, ExitCode.TERMINATED}
"""Exit codes of attempts that did not crash."""


def check_restart_budget(attempts: Sequence[AttemptRecord], step: int, limit: int | None, run_label: object) -> None:
    """Raises an error if the last ``limit`` restarts of a run made no progress.

    Attempts that were stopped, or ended by a user error, do not count.

    Args:
        attempts: Attempts from ``run.json``, oldest first.
        step: Step of the checkpoint from which the run would resume. 0 without a checkpoint.
        limit: Maximum number of restarts in a row without a new checkpoint. None for no limit.
        run_label: Name of the run, for the message.

    Raises:
        CrashLoopError: If the limit is reached.
    """
    crashes: list[AttemptRecord] = []
    for attempt in reversed(attempts):
        if attempt["first_step"] not in {None, step}:
            break
        if not attempt.get("preempted") and attempt.get("code") not in _NON_CRASH_CODES:
            crashes.append(attempt)
    restarts = [attempt for attempt in crashes if attempt["number"] > 1]
    if limit is not None and len(restarts) >= limit:
        reason = crashes[0]["reason"] or "it was killed"
        raise CrashLoopError(
            f"the run {run_label} was restarted {pluralize(len(restarts), 'time')} without progress after the "
            f"checkpoint of step {step} (last reason: {reason}). Correct the cause, then start the run with "
            "max_restarts_without_progress=null."
        )
