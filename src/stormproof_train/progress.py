"""A progress bar for the whole run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
from tqdm import tqdm


class Progress(Callback):
    """One bar from the first step to the last: loss, validation metric, epoch, time left.

    The loss is read off the device only when the bar is drawn anew, ten times a second at the most.

    Args:
        metric: the logged validation metric to show, without its ``val/``.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the bar on rank 0, where a person looks."""
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
        """Moves the bar to the step reached."""
        if self._bar is None or not self._bar.update(trainer.global_step - self._bar.n):
            return
        shown: dict[str, Any] = {"epoch": trainer.current_epoch + 1}
        if isinstance(outputs, dict) and "loss" in outputs:
            shown["loss"] = f"{float(outputs['loss']) * trainer.accumulate_grad_batches:.4f}"
        value = trainer.callback_metrics.get(f"val/{self.metric}")
        if value is not None:
            shown[self.metric] = f"{float(value):.4f}"
        self._bar.set_postfix(shown, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clears the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Clears the bar, so that the error stands alone."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
