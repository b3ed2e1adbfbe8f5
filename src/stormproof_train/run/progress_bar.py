"""Shows the progress of a run: a progress bar in a terminal, otherwise lines of text."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
from tqdm import tqdm

from stormproof_train.console import print_line

MIN_SECONDS_BETWEEN_LINES = 10.0
"""Minimum time between two lines at epoch ends."""
MAX_SECONDS_WITHOUT_LINE = 60.0
"""Time after which a line is printed within an epoch."""


class RunProgressBar(Callback):
    """Shows one progress bar for the whole run: loss, validation metric, epoch, time left.

    The loss is read from the device only when the bar is redrawn, at most ten times per second.

    Args:
        metric: Name of the validation metric to show, without its prefix ``val/``.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Creates the bar on rank 0."""
        if trainer.is_global_zero:
            total = trainer.estimated_stepping_batches
            self._bar = tqdm(
                total=int(total) if total != float("inf") else None,
                initial=trainer.global_step,
                unit="step",
                dynamic_ncols=True,
                leave=False,
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advances the bar to the current step."""
        if self._bar is None or not self._bar.update(trainer.global_step - self._bar.n):
            return
        postfix: dict[str, Any] = {"epoch": trainer.current_epoch + 1}
        if isinstance(outputs, dict) and "loss" in outputs:
            postfix["loss"] = _format_batch_loss(trainer, outputs["loss"])
        value = trainer.callback_metrics.get(f"val/{self.metric}")
        if value is not None:
            postfix[self.metric] = f"{float(value):.4f}"
        self._bar.set_postfix(postfix, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clears the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Clears the bar before the error is printed."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ProgressLines(Callback):
    """Prints a line per epoch, at most every 10 seconds, and at least one per minute within long epochs.

    Args:
        metric: Name of the validation metric to show, without its prefix ``val/``.
    """

    not_restored = ("_first_step", "_started", "_last", "_loss")

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._first_step, self._started, self._last = 0, 0.0, 0.0
        self._loss: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._first_step = trainer.global_step
        self._started = self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stores the loss. Prints a line if the last one is a minute old."""
        if isinstance(outputs, dict) and "loss" in outputs:
            self._loss = outputs["loss"]
        self._print(trainer, MAX_SECONDS_WITHOUT_LINE)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints a line if the last one is at least 10 seconds old."""
        self._print(trainer, MIN_SECONDS_BETWEEN_LINES)

    def _print(self, trainer: pl.Trainer, seconds: float) -> None:
        now = time.monotonic()
        if now - self._last < seconds or not trainer.is_global_zero:
            return
        self._last = now
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        parts = [f"epoch {trainer.current_epoch + 1}{f'/{epochs}' if epochs else ''}"]
        parts.append(f"step {step:,}{f'/{int(total):,}' if total != float('inf') else ''}")
        if self._loss is not None:
            parts.append(f"loss {_format_batch_loss(trainer, self._loss)}")
        value = trainer.callback_metrics.get(f"val/{self.metric}")
        if value is not None:
            parts.append(f"val/{self.metric} {float(value):.4f}")
        if total != float("inf") and step > self._first_step:
            seconds_left = (total - step) * (now - self._started) / (step - self._first_step)
            parts.append(f"{timedelta(seconds=round(seconds_left))} left")
        print_line(", ".join(parts))


def _format_batch_loss(trainer: pl.Trainer, loss: Any) -> str:
    """Returns a loss as text. Lightning divides it by the number of accumulated batches."""
    return f"{float(loss) * trainer.accumulate_grad_batches:.4f}"
