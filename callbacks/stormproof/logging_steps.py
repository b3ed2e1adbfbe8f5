"""At which steps Lightning passes what was logged on to the loggers."""

from __future__ import annotations

import pytorch_lightning as pl


def is_logging_step(trainer: pl.Trainer, steps_done: int) -> bool:
    """Whether the batch that completes ``steps_done`` optimizer steps is one whose values reach the loggers.

    One ``self.log`` takes 0.26 to 0.40 ms (scripts/benchmarks/RECORDS.md), so what is only meant for the loggers is
    logged at these steps alone.

    Args:
        trainer: the running trainer; ``log_every_n_steps=0`` means never.
        steps_done: optimizer steps completed once this batch ends, at least 1.
    """
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] (set in Trainer.__init__)
    return every > 0 and steps_done % every == 0
