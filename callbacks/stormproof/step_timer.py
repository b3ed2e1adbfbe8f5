"""Measures the duration of training batches and the wait for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.logging_steps import has_passed_logging_step, log_to_loggers
from stormproof.lightning.step_exchange import ExchangedNumbers, StepExchange, call_at_exchange_steps


class StepTimer(InactiveCopies, Callback):
    r"""Measures the duration of training batches and the fraction spent waiting for the data loader.

    The duration :math:`t_i` of a batch is the time since the end of the previous batch, the start of the epoch, or the
    end of a validation, whichever is latest. The wait :math:`w_i` is the time from the request for the batch until the
    data loader returns it. The batch after a logging step is excluded, because loggers write just before it. Over the
    :math:`n` batches since the last logging step,

    .. math:: \text{batch seconds} = \frac{1}{n}\sum t_i, \qquad \text{wait fraction} = \frac{\sum w_i}{\sum t_i}.

    Logged values, each the mean over all ranks:

    | name                        | value                                   | when                              |
    |-----------------------------|-----------------------------------------|-----------------------------------|
    | ``time/batch_seconds``      | mean duration of a batch, in seconds    | every ``log_every_n_steps`` steps |
    | ``time/data_wait_fraction`` | fraction of it spent on waiting, 0 to 1 | every ``log_every_n_steps`` steps |

    The values are sent to the loggers only, not to ``trainer.callback_metrics``. With several ranks, they are logged at
    the next step that is a multiple of ten, because the ranks exchange other numbers there, too. On a GPU, the host
    runs ahead until the device's queue is full, so the first window may be too short. With ``log_every_n_steps=1``,
    only the first batch of an epoch and the first batch after a validation are measured.

    Attributes:
        batches: Number of batches measured, including those before a resume.
        seconds: Total duration of these batches, in seconds.
        data_wait_seconds: Total wait for the data loader, in seconds.
        last_logged: Values logged last, by name. Empty before the first logging step.

    Example:
        >>> timer = StepTimer()
        >>> trainer = pl.Trainer(callbacks=[timer])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> timer.data_wait_seconds / timer.seconds  # doctest: +SKIP
        0.031

    References:
        https://lightning.ai/docs/pytorch/stable/tuning/profiler.html
    """

    def __init__(self) -> None:
        self.batches = 0
        self.seconds = 0.0
        self.data_wait_seconds = 0.0
        self.last_logged: dict[str, float] = {}
        self._window_start = (0, 0.0, 0.0)  # batches, seconds and wait at the last logging step
        self._batch_start = 0.0  # end of the previous batch
        self._fetch_start = self._wait_seconds = 0.0
        self._undo_functions: list[Callable[[], None]] = []
        self._exchanged_window: ExchangedNumbers | None = None  # with several ranks, during training
        self._previous_step = 0
        self._must_log = False
        self._is_measurable = True  # False if loggers have written since the start of the batch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a new window, which excludes the time between two calls of ``fit``."""
        self._batch_start, self._is_measurable = time.perf_counter(), True  # a resumed epoch has no start hook
        self._previous_step = trainer.global_step
        self._window_start = (self.batches, self.seconds, self.data_wait_seconds)
        self._must_log = False
        self._undo_functions = [internals.call_between_batches(trainer, self._mark_fetch_start, run_last=True)]
        if trainer.world_size > 1:
            self._exchanged_window = StepExchange.of(trainer).add(self._window_means)
            self._undo_functions += [
                self._exchanged_window.remove,
                call_at_exchange_steps(trainer, lambda: self._exchange_window(trainer)),
            ]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the timer."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stops the timer."""
        self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts timing the first batch of an epoch."""
        self._batch_start, self._is_measurable = time.perf_counter(), True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Excludes the duration of the validation."""
        self._batch_start, self._is_measurable = time.perf_counter(), True

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ends the wait for the data loader."""
        self._wait_seconds = time.perf_counter() - self._fetch_start

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds the batch to the totals."""
        now = time.perf_counter()
        if self._is_measurable:
            self.batches += 1
            self.seconds += now - self._batch_start
            self.data_wait_seconds += self._wait_seconds
        previous_step, self._previous_step = self._previous_step, trainer.global_step
        logging_step = has_passed_logging_step(trainer, previous_step, self._previous_step)
        self._batch_start, self._is_measurable = now, not logging_step
        if self._exchanged_window is not None:
            self._must_log |= logging_step
        elif logging_step:
            self._log_window(trainer, self._window_means())

    def _inactive_state(self) -> dict[str, Any]:
        return {"_undo_functions": [], "_exchanged_window": None}

    def _mark_fetch_start(self) -> None:
        self._fetch_start = time.perf_counter()

    def _stop(self) -> None:
        while self._undo_functions:
            self._undo_functions.pop()()
        self._exchanged_window = None

    def _exchange_window(self, trainer: pl.Trainer) -> None:
        """Logs the window of all ranks after a logging step, at a step at which they also exchange other numbers."""
        if self._exchanged_window is None or not self._must_log:
            return
        rows = self._exchanged_window.read()
        self._must_log = self._is_measurable = False
        self._log_window(trainer, [fmean(column) for column in zip(*rows, strict=True)])

    def _log_window(self, trainer: pl.Trainer, means: list[float]) -> None:
        """Logs the means of the window and starts a new one."""
        self._window_start = (self.batches, self.seconds, self.data_wait_seconds)
        batch_seconds, data_wait_fraction = means
        if batch_seconds == 0:
            return
        self.last_logged = {"time/batch_seconds": batch_seconds, "time/data_wait_fraction": data_wait_fraction}
        # not in callback_metrics, which must be equal in a resumed run, and times never are
        log_to_loggers(trainer, self.last_logged)

    def _window_means(self) -> list[float]:
        """Returns the mean seconds of a batch and the fraction spent waiting. Zeros without measured batches."""
        batches, seconds, wait = self._window_start
        elapsed = self.seconds - seconds
        if elapsed <= 0:
            return [0.0, 0.0]
        return [elapsed / (self.batches - batches), (self.data_wait_seconds - wait) / elapsed]

    def state_dict(self) -> dict[str, Any]:
        """Returns the totals."""
        return {"batches": self.batches, "seconds": self.seconds, "data_wait_seconds": self.data_wait_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the totals."""
        self.batches = state_dict["batches"]
        self.seconds = state_dict["seconds"]
        self.data_wait_seconds = state_dict["data_wait_seconds"]
