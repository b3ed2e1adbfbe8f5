"""When Lightning passes what was logged on to the loggers, and how a callback does so itself."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl

from stormproof.lightning.logged_metrics import add_callback_metrics


def is_logging_step(trainer: pl.Trainer, steps_done: int) -> bool:
    """Whether the batch that completes ``steps_done`` optimizer steps is one whose values reach the loggers.

    One ``self.log`` takes 0.26 to 0.40 ms (scripts/benchmarks/RECORDS.md), so what is only meant for the loggers is
    logged at these steps alone.

    Args:
        trainer: the running trainer; ``log_every_n_steps=0`` means never.
        steps_done: optimizer steps completed once this batch ends, at least 1.
    """
    return has_passed_logging_step(trainer, steps_done - 1, steps_done)


def has_passed_logging_step(trainer: pl.Trainer, previous_step: int, current_step: int) -> bool:
    """Returns whether a logging step lies after ``previous_step``, up to and including ``current_step``.

    A batch under gradient accumulation may complete no optimizer step, one with several optimizers completes several.
    """
    interval: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] (set in Trainer.__init__)
    return interval > 0 and current_step // interval > previous_step // interval


def log_values(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Logs ``values`` to all loggers and adds them to ``trainer.callback_metrics``.

    Call it on all ranks with equal values, since ``EarlyStopping`` and ``ModelCheckpoint`` look up their
    metric on every rank.

    Args:
        trainer: Running trainer.
        values: Values by metric name.
    """
    add_callback_metrics(trainer, values)
    log_to_loggers(trainer, values)


def log_to_loggers(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Logs ``values`` to all loggers. Faster than one ``self.log`` per value.

    The step is the one that Lightning logs at: within ``fit`` that of the last batch, from 0.

    Args:
        trainer: Running trainer.
        values: Values by metric name.
    """
    step = max(trainer.global_step - (trainer.state.fn == "fit"), 0)
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=step)
