"""How the ranks of a job share its steps."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof_train.counted import counted
from stormproof_train.errors import UserError


def accumulation(given: int, ranks: int, first: tuple[int, int] | None, batch_size: int | None) -> int:
    """The batches of a step on each rank, where a run goes on with another number of ranks.

    The batch of the whole job stays. Fewer ranks take more batches for a step, so that no forward pass has more samples
    than it had at first: as many fit into memory.

    Args:
        given: as the config has it.
        ranks: of this job.
        first: ranks, and batches of a step on each, of the run's first attempt; None where there was none.
        batch_size: samples of a step, over all ranks; None where nobody says.

    Example:
        >>> accumulation(given=1, ranks=2, first=(8, 1), batch_size=64)
        4
        >>> accumulation(given=1, ranks=16, first=(8, 1), batch_size=64)
        1
    """
    if first is None or first[0] == ranks:
        return given
    parts = first[0] * first[1]
    if batch_size is None or batch_size % ranks:
        return given if parts % ranks else parts // ranks
    most = batch_size // parts
    each = batch_size // ranks
    return next(count for count in range(1, each + 1) if each % count == 0 and each // count <= most)


def share_steps(trainer: pl.Trainer, first: tuple[int, int] | None, batch_size: int | None) -> None:
    """Sets how many batches a step has, and with it what the Trainer counts in batches.

    Args:
        trainer: as it was built.
        first: ranks, and batches of a step on each, of the run's first attempt; None where there was none.
        batch_size: samples of a step, over all ranks; None where nobody says.

    Raises:
        UserError: if a limit in batches is no whole number of them any more.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (set in __init__)
    if any(hasattr(callback, "get_accumulate_grad_batches") for callback in callbacks):
        return  # it decides
    given = trainer.accumulate_grad_batches
    accumulated = accumulation(given, trainer.world_size, first, batch_size)
    trainer.accumulate_grad_batches = accumulated
    for name in ("limit_train_batches", "val_check_interval"):
        limit = getattr(trainer, name)
        if isinstance(limit, int) and accumulated != given:
            batches, over = divmod(limit * accumulated, given)
            if over:
                raise UserError(
                    f"trainer.{name}={limit}, in batches of {given} a step, is no whole number of batches for "
                    f"{trainer.world_size} ranks, which take {accumulated} a step: start as many ranks as before"
                )
            setattr(trainer, name, batches)


def shares_of(trainer: pl.Trainer, batch_size: int | None) -> str:
    """How a job's ranks share its work, once its training begins.

    Args:
        trainer: at its first batch.
        batch_size: samples of an optimizer step, over all ranks; None where nobody says.
    """
    ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    parts = f"{counted(ranks, 'rank')} x {counted(accumulated, 'batch')} a step"
    if batch_size is not None:
        parts += f" x {counted(batch_size // (ranks * accumulated), 'sample')} = {batch_size}"
    batches = trainer.num_training_batches
    if batches == float("inf"):
        return f"{parts}; the learning rate is as given, not scaled"
    steps, all_steps = -(-int(batches) // accumulated), trainer.estimated_stepping_batches
    return (
        f"{parts}; {counted(steps, 'step')} an epoch, {all_steps:,} in all; the learning rate is as given, not scaled"
    )
