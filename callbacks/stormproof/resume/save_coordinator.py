"""When the state of a training is saved: decided by all ranks together, done by rank 0's writer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from stormproof.checkpoint import CommitInfo, Retention, Store
from stormproof.checkpoint.async_writer import CheckpointWriter
from stormproof.checkpoint.monitored_metric import MonitoredMetric
from stormproof.checkpoint.schedule import SaveSchedule
from stormproof.distributed.collectives import SYNC_EVERY_N_STEPS, run_on_rank_zero
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.resume import snapshot
from stormproof.resume.unsaved_attributes import UnsavedAttributes


class SaveCoordinator(InactiveCopies):
    """Saves what :mod:`stormproof.resume.snapshot` takes, where it is due. All ranks call every method together.

    Args:
        store: where checkpoints go.
        schedule: how often.
        retention: what is kept.
        monitored_metric: the metric by which one is among the best.
        identity: of the run, for the manifests.

    Attributes:
        writer: on rank 0, while it trains; None else.
        unsaved_attributes: Warns about attributes that are in no checkpoint.
    """

    def __init__(
        self,
        store: Store,
        schedule: SaveSchedule,
        retention: Retention,
        monitored_metric: MonitoredMetric,
        identity: str | None,
    ) -> None:
        self._store, self._schedule, self._retention, self._monitored_metric = (
            store,
            schedule,
            retention,
            monitored_metric,
        )
        self._identity = identity
        self.writer: CheckpointWriter | None = None
        self.unsaved_attributes = UnsavedAttributes()

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether to save now, between two batches that a step lies between.

        Raises:
            StormproofError: on every rank, if the last write ended by what is no fault of storage, or, with exit code
                74, if nothing could be saved for too long.
        """
        step, is_due_by_clock = trainer.global_step, False
        if trainer.world_size == 1 or step % SYNC_EVERY_N_STEPS == 0:
            is_due_by_clock = run_on_rank_zero(self._is_due_by_clock)
        is_scheduled = is_due_by_clock or self._schedule.is_due_by_step(step)
        has_fresh_metric = self._monitored_metric.is_fresh(trainer)
        if not (is_scheduled or has_fresh_metric):
            return False
        return run_on_rank_zero(
            lambda: (is_scheduled or self._is_among_best(trainer)) and self._require_writer().wait_until_free()
        )

    def save(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        stall_start: float,
        *,
        has_validated: bool,
        has_ended: bool = False,
    ) -> float:
        """Takes the state and hands it over; at the end of the training it is committed when this returns.

        Args:
            trainer: between two batches, or at the end of the training.
            module: what it trains.
            stall_start: since when training stands still, by ``time.monotonic``.
            has_validated: whether the validation loaders have been iterated in this run.
            has_ended: whether the training is over.

        Returns:
            The seconds for which training stood still, by rank 0's clock.
        """
        checkpoint = snapshot.capture(trainer, module, has_validated=has_validated, has_ended=has_ended)
        if trainer.is_global_zero:
            self.unsaved_attributes.check(trainer, checkpoint)
        stall = run_on_rank_zero(lambda: self._submit(checkpoint, trainer, stall_start, has_ended))
        self._schedule.record_save(trainer.global_step, time.monotonic(), stall)
        return stall

    def wait_until_committed(self) -> int | None:
        """Waits until what is being written is committed.

        Returns:
            The step of what was committed last, None if that was before this process began.

        Raises:
            StormproofError: on every rank, with exit code 74, if it could not be saved.
        """

        def finish() -> int | None:
            self._require_writer().finish()
            return self._require_writer().committed_step

        return run_on_rank_zero(finish)

    def _inactive_state(self) -> dict[str, Any]:
        return {"writer": None}

    def _require_writer(self) -> CheckpointWriter:
        assert self.writer is not None
        return self.writer

    def _is_due_by_clock(self) -> bool:
        """Tells, and raises, what became of the last one."""
        writer = self._require_writer()
        writer.check_last_write()
        return self._schedule.is_due_by_clock(time.monotonic()) or writer.should_retry

    def _is_among_best(self, trainer: pl.Trainer) -> bool:
        score = self._monitored_metric.value(trainer)
        try:
            return score is not None and self._retention.would_keep(score, self._store.read_checkpoints())
        except OSError:  # the writer will meet it, and tell
            return True

    def _submit(self, checkpoint: Mapping[str, Any], trainer: pl.Trainer, stall_start: float, has_ended: bool) -> float:
        writer = self._require_writer()
        info = CommitInfo(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            world_size=trainer.world_size,
            score=self._monitored_metric.value(trainer),
            identity=self._identity,
        )
        writer.submit(checkpoint, {*internals.state_keys(trainer), snapshot.KEY}, info)
        if has_ended:
            writer.finish()
        return time.monotonic() - stall_start
