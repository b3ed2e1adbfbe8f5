"""Logs values of callbacks at the steps at which Lightning logs to its loggers."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl

from stormproof.lightning.logged_metrics import add_callback_metrics


def is_logging_step(trainer: pl.Trainer, steps_done: int) -> bool:
    """Returns whether Lightning logs the values of the batch that completes ``steps_done`` optimizer steps.

    A call of ``self.log`` takes 0.26 to 0.40 ms (scripts/benchmarks/RECORDS.md), so values for the loggers are logged
    only at these steps.

    Args:
        trainer: Running trainer. Returns False if its ``log_every_n_steps`` is 0.
        steps_done: Optimizer steps done at the end of this batch. Must be at least 1.
    """
    return has_passed_logging_step(trainer, steps_done - 1, steps_done)


def has_passed_logging_step(trainer: pl.Trainer, previous_step: int, current_step: int) -> bool:
    """Returns whether a logging step lies after ``previous_step``, up to and including ``current_step``.

    With gradient accumulation, a batch may complete no optimizer step. With several optimizers, it completes several.
    """
    interval: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] (set in Trainer.__init__)
    return interval > 0 and current_step // interval > previous_step // interval


def log_values(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Logs ``values`` to all loggers and adds them to ``trainer.callback_metrics``.

    Call it on all ranks with equal values, because ``EarlyStopping`` and ``ModelCheckpoint`` read their metric on every
    rank.
    """
    add_callback_metrics(trainer, values)
    log_to_loggers(trainer, values)


def log_to_loggers(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Logs ``values`` to all loggers. Faster than one ``self.log`` per value.

    Uses Lightning's step: within ``fit``, the step of the last batch, from 0.
    """
    step = max(trainer.global_step - (trainer.state.fn == "fit"), 0)
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=step)
