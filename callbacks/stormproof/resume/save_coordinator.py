"""Coordinates checkpoints among all ranks. Rank 0 writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl

from stormproof.checkpoint import CommitInfo, Resolution, Retention, Store
from stormproof.checkpoint.async_writer import CheckpointWriter
from stormproof.checkpoint.folder_ownership import FolderOwnership, verify_shared_store
from stormproof.checkpoint.monitored_metric import MonitoredMetric
from stormproof.checkpoint.schedule import SaveSchedule
from stormproof.checkpoint.tiers.tier import Capture, Fit, Ranks, Tier
from stormproof.distributed.collectives import SYNC_EVERY_N_STEPS, run_on_rank_zero
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.layout import Layout
from stormproof.lightning.step_exchange import ExchangedNumbers, StepExchange
from stormproof.long_waits import long_wait
from stormproof.resume import script_settings, sharded_state, snapshot
from stormproof.resume.checkpoint_finder import explain_storage_errors
from stormproof.resume.refused_state import RefusedState
from stormproof.resume.unsaved_attributes import UnsavedAttributes

if TYPE_CHECKING:  # imports torch.distributed.checkpoint, which takes 0.3 s
    from stormproof.checkpoint.sharding.shard_writer import ShardWriter

Destination = Literal["storage", "tiers"]
"""Where the state is saved: as a checkpoint, or only as a copy in the tiers."""


class SaveCoordinator(InactiveCopies):
    """Decides when a checkpoint is due and saves it. All ranks call every method together.

    Args:
        store: Folder of checkpoints.
        schedule: Schedule of checkpoints.
        retention: Checkpoints to keep.
        monitored_metric: Metric that ranks the checkpoints.
        identity: Identity of the run, for the manifests.
        tiers: Copies of the state outside the storage.
        async_save: Whether training continues while a checkpoint is written.
        storage_timeout_seconds: Seconds without a commit, despite failures, after which training stops. Must be above
            0.

    Attributes:
        writer: Writer on rank 0 during training, otherwise None.
        shard_writer: Writer of this rank's shard during training. None if checkpoints are in one file.
        shard_step: Step of the last checkpoint for storage whose shard this rank has planned. None before the first.
        unsaved_attributes: Warns about attributes that are in no checkpoint.
        settings: Settings of the script, for the checkpoints.
    """

    def __init__(
        self,
        store: Store,
        schedule: SaveSchedule,
        retention: Retention,
        monitored_metric: MonitoredMetric,
        identity: str | None,
        tiers: Sequence[Tier],
        *,
        async_save: bool,
        storage_timeout_seconds: float,
    ) -> None:
        self._store, self._schedule, self._retention, self._monitored_metric = (
            store,
            schedule,
            retention,
            monitored_metric,
        )
        self._identity, self._tiers = identity, tiers
        self._async_save, self._storage_timeout_seconds = async_save, storage_timeout_seconds
        self.writer: CheckpointWriter | None = None
        self.shard_writer: ShardWriter | None = None
        self.shard_step: int | None = None
        self.unsaved_attributes = UnsavedAttributes()
        self.settings: script_settings.Settings = {}
        self._refused_state = RefusedState()
        self._layout = Layout()  # of the last fit
        self._exchanged_attention: ExchangedNumbers | None = None

    def open(self, resolution: Resolution, ranks: Ranks, layout: Layout) -> None:
        """Acquires the store on rank 0, begins an attempt, and starts the writers and the tiers.

        Args:
            resolution: Current resolution of the store.
            ranks: Position of this process.
            layout: Layout of the state.

        Raises:
            FolderTakenError: On every rank, if another running process owns the store or a tier.
            RanksDisagreeError: On every rank, if a rank sees a different store.
            StorageError: On every rank, if the store cannot be used.
        """
        self._layout, self.unsaved_attributes = layout, UnsavedAttributes()
        if layout.saves_shards:
            from stormproof.checkpoint.sharding.shard_writer import ShardWriter  # noqa: PLC0415 (0.3 s)

            self.shard_writer = ShardWriter(self._store.storage, ranks.rank)
        verify_shared_store(self._store, run_on_rank_zero(lambda: self._acquire_store(resolution)))
        for tier in self._tiers:
            tier.start(Fit(self._store, ranks, self.writer, self.shard_writer))

    def start(self, trainer: pl.Trainer) -> Callable[[], None]:
        """Prepares :meth:`find_due_destination`. Returns a function that undoes this."""
        self._exchanged_attention = StepExchange.of(trainer).add(lambda: [float(self._needs_attention(trainer))])
        return self._exchanged_attention.remove

    def find_due_destination(self, trainer: pl.Trainer, last_step: int) -> Destination | None:
        """Returns where to save the state now, between two batches after an optimizer step. None if nothing is due.

        Args:
            trainer: Running trainer.
            last_step: Step at the last call. Several optimizers can pass a step within a batch.

        Raises:
            StormproofError: On every rank, if the last write failed for another reason than storage. With exit code 74
                if no checkpoint could be saved for too long.
        """
        step = trainer.global_step
        due_by_clock: Destination | None = None
        if trainer.world_size == 1:
            due_by_clock = self._find_due_destination_by_clock()
        elif step // SYNC_EVERY_N_STEPS > last_step // SYNC_EVERY_N_STEPS:
            assert self._exchanged_attention is not None, "start comes first"
            rank_zero_needs_attention = self._exchanged_attention.read()[0] == [1.0]
            due_by_clock = run_on_rank_zero(self._find_due_destination_by_clock) if rank_zero_needs_attention else None
        is_scheduled = due_by_clock == "storage" or self._schedule.is_due_by_step(step)
        has_fresh_metric = self._monitored_metric.is_fresh(trainer)
        if not (is_scheduled or has_fresh_metric):
            return due_by_clock
        should_save = run_on_rank_zero(
            lambda: (is_scheduled or self._is_among_best(trainer)) and self._require_writer().wait_until_free()
        )
        if should_save:
            return "storage"
        return "tiers" if due_by_clock == "tiers" else None

    def copy_to_tiers(
        self, trainer: pl.Trainer, module: pl.LightningModule, stall_start: float, *, has_validated: bool
    ) -> None:
        """Captures the state and copies it to the tiers, with the arguments of :meth:`save`."""
        checkpoint = self._capture(trainer, module, has_validated=has_validated, has_ended=False)
        state = None if self.shard_writer is None else sharded_state.pop_state(checkpoint)
        capture = Capture(
            checkpoint, _collect_state_keys(trainer), state, partial(self._describe, trainer), stall_start
        )
        for tier in self._tiers:
            tier.copy(capture)

    def discard_copies(self) -> None:
        """Deletes the copies in the tiers, which may contain diverged weights. Runs on rank 0.

        Raises:
            OSError: If a copy may remain.
        """
        for tier in self._tiers:
            tier.discard()

    def save(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        stall_start: float,
        *,
        has_validated: bool,
        has_ended: bool = False,
    ) -> float:
        """Captures the state and submits it to the writer.

        Args:
            trainer: Trainer between two batches or at the end of training.
            module: Module that it trains.
            stall_start: Time at which training paused, by ``time.monotonic``.
            has_validated: Whether the validation loaders have been iterated in this run.
            has_ended: Whether training has ended. If True, waits until the checkpoint is committed.

        Returns:
            Seconds for which training paused, by rank 0's clock.
        """
        checkpoint = self._capture(trainer, module, has_validated=has_validated, has_ended=has_ended)
        if self.shard_writer is not None:
            # before any rank overwrites the copy that is being written
            run_on_rank_zero(lambda: self._require_writer().require_write_finished())
            self.shard_writer.plan(sharded_state.pop_state(checkpoint))
            self.shard_step = trainer.global_step
            if not trainer.is_global_zero:  # rank 0 does so in submit
                self.shard_writer.stage()
        stall = run_on_rank_zero(lambda: self._submit(checkpoint, trainer, stall_start, has_ended))
        self._schedule.record_save(trainer.global_step, time.monotonic(), stall)
        return stall

    def _capture(self, trainer: pl.Trainer, module: pl.LightningModule, **options: bool) -> dict[str, Any]:
        checkpoint = snapshot.capture(trainer, module, self._layout, **options, settings=self.settings)
        if trainer.is_global_zero:
            self.unsaved_attributes.check(trainer, checkpoint)
        self._refused_state.extract(trainer, self._layout, checkpoint)
        return checkpoint

    def set_baseline(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Records which sharded tensors are not finite after a resume. They do not prevent later commits."""
        if self.shard_writer is not None:
            self.shard_writer.set_baseline(sharded_state.collect_state(trainer, module))

    def wait_for_previous(self, seconds: float) -> bool:
        """Waits for the previous write if storage has a problem. Returns False if it takes longer than ``seconds``."""
        return run_on_rank_zero(lambda: self._require_writer().wait_for_previous(seconds))

    def wait_until_committed(self, seconds: float = inf) -> int | None:
        """Waits until the submitted checkpoint is committed.

        Args:
            seconds: Time after which a failed write is not retried, in seconds.

        Returns:
            The step of the newest commit of this process. None without a commit.

        Raises:
            StormproofError: On every rank, with exit code 74, if the checkpoint could not be saved and ``seconds`` is
                infinite.
        """

        def finish() -> int | None:
            self._require_writer().finish(seconds)
            return self._require_writer().committed_step

        return run_on_rank_zero(finish)

    def record_progress(self, step: int) -> None:
        """Records the number of optimizer steps done, for the report of a restart."""
        if self.writer is not None:
            self.writer.ownership.record_progress(step)

    def close(self, *, is_interrupted: bool, has_ended: bool) -> None:
        """Waits for the last write, ends all threads, and releases the store.

        Args:
            is_interrupted: Whether the run ends because of Ctrl-C or a preemption, so that it waits shortly.
            has_ended: Whether training has ended normally.
        """
        committed_step = None
        if self.writer is not None:
            self.writer.close(is_interrupted=is_interrupted)
            committed_step = self.writer.committed_step
        if self.shard_writer is not None:
            self.shard_writer.close(is_interrupted=is_interrupted)
        for tier in reversed(self._tiers):
            tier.close(committed_step, is_interrupted=is_interrupted, has_ended=has_ended)
        self.writer = self.shard_writer = None

    def _acquire_store(self, resolution: Resolution) -> str:
        """Acquires the store on rank 0. Returns the token of the ownership."""
        with explain_storage_errors(self._store, "used"):
            ownership = FolderOwnership(self._store, resolution)
        self.writer = CheckpointWriter(
            self._store,
            self._retention,
            ownership,
            async_save=self._async_save,
            storage_timeout_seconds=self._storage_timeout_seconds,
            on_commit=self._notify_tiers,
            shard_writer=self.shard_writer,
        )
        return ownership.token

    def _notify_tiers(self) -> None:
        for tier in self._tiers:
            tier.after_commit()

    def _inactive_state(self) -> dict[str, Any]:
        return dict.fromkeys(("writer", "shard_writer", "_exchanged_attention"))

    def _require_writer(self) -> CheckpointWriter:
        assert self.writer is not None
        return self.writer

    def _find_due_destination_by_clock(self) -> Destination | None:
        """Returns where to save according to the time since the last save. Reports a failure of the last write."""
        writer = self._require_writer()
        writer.check_last_write()
        now = time.monotonic()
        if self._schedule.is_due_by_clock(now) or writer.should_retry:
            return "storage"
        return "tiers" if any(tier.is_due(now) for tier in self._tiers) else None

    def _needs_attention(self, trainer: pl.Trainer) -> bool:
        """Returns whether a checkpoint may be due or the last write may have failed. False on ranks other than 0."""
        if not trainer.is_global_zero or not self._schedule.has_saved:
            return False
        writer, now = self._require_writer(), time.monotonic()
        is_copy_due = any(tier.is_due(now) for tier in self._tiers)
        return self._schedule.is_due_by_clock(now) or writer.may_have_failed or is_copy_due

    def _is_among_best(self, trainer: pl.Trainer) -> bool:
        score = self._monitored_metric.value(trainer)
        if score is None or self._require_writer().has_storage_problem:
            return score is not None
        try:
            with long_wait("storage"):  # an object store has its own timeout
                return self._retention.would_keep(score, self._store.read_checkpoints())
        except OSError:  # the writer reports the storage error
            return True

    def _submit(self, checkpoint: Mapping[str, Any], trainer: pl.Trainer, stall_start: float, has_ended: bool) -> float:
        writer = self._require_writer()
        writer.submit(checkpoint, _collect_state_keys(trainer), self._describe(trainer))
        if has_ended:
            writer.finish()
        return time.monotonic() - stall_start

    def _describe(self, trainer: pl.Trainer) -> CommitInfo:
        return CommitInfo(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            world_size=trainer.world_size,
            score=self._monitored_metric.value(trainer),
            identity=self._identity,
        )


def _collect_state_keys(trainer: pl.Trainer) -> set[str]:
    return {*internals.state_keys(trainer), snapshot.KEY}
