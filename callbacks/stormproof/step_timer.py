"""How long a training step takes, and how much of it is waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback

from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.logging_steps import has_passed_logging_step, log_to_loggers


class StepTimer(InactiveCopies, Callback):
    r"""Measures the time of a training batch and the share of it spent waiting for the data loader.

    A batch lasts from the end of the one before (or the start of its epoch, or the end of a validation in between) to
    its own end; the wait is the part from where it begins to be fetched until it is handed over. The batch after a
    logging step is left out, since the loggers write just before it. Over the window of batches since the last logging
    step it reports

    .. math:: \text{seconds} = \frac{1}{n}\sum t_i, \qquad \text{wait fraction} = \frac{\sum w_i}{\sum t_i}

    sent to the loggers at Lightning's logging steps as ``time/batch_seconds`` and ``time/data_wait_fraction``: the mean
    over all ranks, under the step of Lightning's own rows. With a GPU the host runs ahead of the device; over a window
    the device's queue holds it back to the true pace, so the first window, in which the queue fills, may read short.
    With ``log_every_n_steps=1`` only an epoch's first batch and one after a validation can be measured.

    Attributes:
        batches: batches measured since training began, resumes included.
        seconds: their duration in s.
        data_wait_seconds: the part of it in s that the loop waited for the data loader.
        last_logged: what was logged last, by name; empty before.

    Example:
        >>> timer = StepTimer()
        >>> trainer = pl.Trainer(callbacks=[timer])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> timer.data_wait_seconds / timer.seconds  # doctest: +SKIP
        0.031
    """

    def __init__(self) -> None:
        self.batches = 0
        self.seconds = 0.0
        self.data_wait_seconds = 0.0
        self.last_logged: dict[str, float] = {}
        self._window_start = (0, 0.0, 0.0)  # batches, seconds and wait at the last logging step
        self._batch_start = 0.0  # when the batch before ended
        self._fetch_start = self._wait_seconds = 0.0
        self._stop_clock: Callable[[], None] | None = None
        self._previous_step = 0
        self._is_measurable = True  # whether nothing but the data loader stands between the mark and the batch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins a new window: time between two fits is nobody's."""
        self._batch_start, self._is_measurable = time.perf_counter(), True  # in the middle of an epoch, none begins
        self._previous_step = trainer.global_step
        self._window_start = (self.batches, self.seconds, self.data_wait_seconds)
        self._stop_clock = internals.call_between_batches(trainer, self._mark_fetch_start, run_last=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clocks no longer."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Clocks no longer."""
        self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of an epoch's first batch."""
        self._batch_start, self._is_measurable = time.perf_counter(), True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the validation's time out."""
        self._batch_start, self._is_measurable = time.perf_counter(), True

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The batch is here: the wait is over."""
        self._wait_seconds = time.perf_counter() - self._fetch_start

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds the batch to the totals, and logs the window at a logging step."""
        now = time.perf_counter()
        if self._is_measurable:
            self.batches += 1
            self.seconds += now - self._batch_start
            self.data_wait_seconds += self._wait_seconds
        logging_step = has_passed_logging_step(trainer, self._previous_step, trainer.global_step)
        self._previous_step = trainer.global_step
        if logging_step:
            self._log_window(trainer)
        self._batch_start, self._is_measurable = now, not logging_step

    def _inactive_state(self) -> dict[str, Any]:
        return {"_stop_clock": None}

    def _mark_fetch_start(self) -> None:
        self._fetch_start = time.perf_counter()

    def _stop(self) -> None:
        if self._stop_clock is not None:
            self._stop_clock()
            self._stop_clock = None

    def _log_window(self, trainer: pl.Trainer) -> None:
        """Hands the window to the loggers."""
        batches, seconds, wait = self._window_start
        self._window_start = (self.batches, self.seconds, self.data_wait_seconds)
        elapsed = self.seconds - seconds
        values = torch.zeros(2, dtype=torch.float64)
        if elapsed > 0:
            values[0] = elapsed / (self.batches - batches)
            values[1] = (self.data_wait_seconds - wait) / elapsed
        if trainer.world_size > 1:  # with all ranks: each is at this step, measured or not
            values = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op="mean")
        batch_seconds, data_wait_fraction = values.tolist()
        if batch_seconds == 0:
            return
        self.last_logged = {"time/batch_seconds": batch_seconds, "time/data_wait_fraction": data_wait_fraction}
        log_to_loggers(trainer, self.last_logged)  # a resumed run has equal callback metrics, but never equal times

    def state_dict(self) -> dict[str, Any]:
        """The totals, as plain numbers."""
        return {"batches": self.batches, "seconds": self.seconds, "data_wait_seconds": self.data_wait_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the totals of ``state_dict``."""
        self.batches = state_dict["batches"]
        self.seconds = state_dict["seconds"]
        self.data_wait_seconds = state_dict["data_wait_seconds"]
