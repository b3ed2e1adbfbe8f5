"""When the state of a training is saved: decided by all ranks together, done by rank 0's writer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from stormproof.checkpoint import CommitInfo, Retention, Store
from stormproof.checkpoint.async_writer import CheckpointWriter
from stormproof.checkpoint.monitored_metric import Monitored
from stormproof.checkpoint.schedule import SaveSchedule
from stormproof.distributed.collectives import AGREEMENT_STEPS, on_rank_zero
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.resume import snapshot
from stormproof.resume.unsaved_attributes import UnsavedAttributes


class Saving(InactiveCopies):
    """Saves what :mod:`stormproof.resume.snapshot` takes, where it is due. All ranks call every method together.

    Args:
        store: where checkpoints go.
        schedule: how often.
        retention: what is kept.
        monitored: the metric by which one is among the best.
        identity: of the run, for the manifests.

    Attributes:
        writer: on rank 0, while it trains; None else.
        unsaved: Warns about attributes that are in no checkpoint.
    """

    def __init__(
        self, store: Store, schedule: SaveSchedule, retention: Retention, monitored: Monitored, identity: str | None
    ) -> None:
        self._store, self._schedule, self._retention, self._monitored = store, schedule, retention, monitored
        self._identity = identity
        self.writer: CheckpointWriter | None = None
        self.unsaved = UnsavedAttributes()

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether to save now, between two batches that a step lies between.

        Raises:
            StormproofError: on every rank, if the last write ended by what is no fault of storage, or, with exit code
                74, if nothing could be saved for too long.
        """
        step, by_clock = trainer.global_step, False
        if trainer.world_size == 1 or step % AGREEMENT_STEPS == 0:
            by_clock = on_rank_zero(self._is_due_by_clock)
        due = by_clock or self._schedule.is_due_by_step(step)
        fresh = self._monitored.is_fresh(trainer)
        if not (due or fresh):
            return False
        return on_rank_zero(lambda: (due or self._is_among_best(trainer)) and self._on_zero().is_free())

    def save(
        self, trainer: pl.Trainer, module: pl.LightningModule, begun: float, *, validated: bool, ended: bool = False
    ) -> float:
        """Takes the state and hands it over; at the end of the training it is committed when this returns.

        Args:
            trainer: between two batches, or at the end of the training.
            module: what it trains.
            begun: since when training stands still, by ``time.monotonic``.
            validated: whether the validation loaders have been iterated in this run.
            ended: whether the training is over.

        Returns:
            The seconds for which training stood still, by rank 0's clock.
        """
        checkpoint = snapshot.take(trainer, module, validated=validated, ended=ended)
        if trainer.is_global_zero:
            self.unsaved.check(trainer, checkpoint)
        stall = on_rank_zero(lambda: self._hand_over(checkpoint, trainer, begun, ended))
        self._schedule.done(trainer.global_step, time.monotonic(), stall)
        return stall

    def settle(self) -> int | None:
        """Waits until what is being written is committed.

        Returns:
            The step of what was committed last, None if that was before this process began.

        Raises:
            StormproofError: on every rank, with exit code 74, if it could not be saved.
        """

        def finish() -> int | None:
            self._on_zero().finish()
            return self._on_zero().committed

        return on_rank_zero(finish)

    def _inactive(self) -> dict[str, Any]:
        return {"writer": None}

    def _on_zero(self) -> CheckpointWriter:
        assert self.writer is not None
        return self.writer

    def _is_due_by_clock(self) -> bool:
        """Tells, and raises, what became of the last one."""
        writer = self._on_zero()
        writer.look()
        return self._schedule.is_due_by_clock(time.monotonic()) or writer.wants_another

    def _is_among_best(self, trainer: pl.Trainer) -> bool:
        score = self._monitored.value(trainer)
        try:
            return score is not None and self._retention.would_keep(score, self._store.checkpoints())
        except OSError:  # the writer will meet it, and tell
            return True

    def _hand_over(self, checkpoint: Mapping[str, Any], trainer: pl.Trainer, begun: float, ended: bool) -> float:
        writer = self._on_zero()
        info = CommitInfo(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            world_size=trainer.world_size,
            score=self._monitored.value(trainer),
            identity=self._identity,
        )
        writer.hand_over(checkpoint, {*internals.state_keys(trainer), snapshot.KEY}, info)
        if ended:
            writer.finish()
        return time.monotonic() - begun
