"""When Lightning passes what was logged on to the loggers, and how a callback does so itself."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl


def is_logging_step(trainer: pl.Trainer, steps_done: int) -> bool:
    """Whether the batch that completes ``steps_done`` optimizer steps is one whose values reach the loggers.

    One ``self.log`` takes 0.26 to 0.40 ms (scripts/benchmarks/RECORDS.md), so what is only meant for the loggers is
    logged at these steps alone.

    Args:
        trainer: the running trainer; ``log_every_n_steps=0`` means never.
        steps_done: optimizer steps completed once this batch ends, at least 1.
    """
    return passed_logging_step(trainer, steps_done - 1, steps_done)


def passed_logging_step(trainer: pl.Trainer, before: int, now: int) -> bool:
    """Whether a batch that brought the optimizer steps from ``before`` to ``now`` completed such a step.

    An accumulated batch completes none, one with several optimizers completes several.
    """
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] (set in Trainer.__init__)
    return every > 0 and now // every > before // every


def log_values(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Hands ``values`` to the loggers under the step of Lightning's own rows: one ``self.log`` for each costs more.

    Within ``fit`` these have the number of the last step, from 0; after it, that of all steps.
    """
    step = max(trainer.global_step - (trainer.state.fn == "fit"), 0)
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=step)
