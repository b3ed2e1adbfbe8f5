"""How the ranks of a job share its steps."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof_train.errors import UserError
from stormproof_train.pluralize import pluralize


def compute_accumulation(
    configured: int, world_size: int, initial_sharding: tuple[int, int] | None, batch_size: int | None
) -> int:
    """The batches of a step on each rank, where a run goes on with another number of ranks.

    The batch of the whole job stays. Fewer ranks take more batches for a step, so that no forward pass has more samples
    than it had at first: as many fit into memory.

    Args:
        configured: as the config has it.
        world_size: of this job.
        initial_sharding: ranks, and batches of a step on each, of the run's first attempt; None where there was none.
        batch_size: samples of a step, over all ranks; None where nobody says.

    Example:
        >>> compute_accumulation(configured=1, world_size=2, initial_sharding=(8, 1), batch_size=64)
        4
        >>> compute_accumulation(configured=1, world_size=16, initial_sharding=(8, 1), batch_size=64)
        1
    """
    if initial_sharding is None or initial_sharding[0] == world_size:
        return configured
    initial_parts = initial_sharding[0] * initial_sharding[1]
    if batch_size is None or batch_size % world_size:
        return configured if initial_parts % world_size else initial_parts // world_size
    max_samples = batch_size // initial_parts
    samples_per_rank = batch_size // world_size
    return next(
        count
        for count in range(1, samples_per_rank + 1)
        if samples_per_rank % count == 0 and samples_per_rank // count <= max_samples
    )


def adjust_accumulation(trainer: pl.Trainer, initial_sharding: tuple[int, int] | None, batch_size: int | None) -> None:
    """Sets how many batches a step has, and with it what the Trainer counts in batches.

    Args:
        trainer: as it was built.
        initial_sharding: ranks, and batches of a step on each, of the run's first attempt; None where there was none.
        batch_size: samples of a step, over all ranks; None where nobody says.

    Raises:
        UserError: if a limit in batches is no whole number of them any more.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (set in __init__)
    if any(hasattr(callback, "get_accumulate_grad_batches") for callback in callbacks):
        return  # it decides
    configured = trainer.accumulate_grad_batches
    accumulate_grad_batches = compute_accumulation(configured, trainer.world_size, initial_sharding, batch_size)
    trainer.accumulate_grad_batches = accumulate_grad_batches
    for name in ("limit_train_batches", "val_check_interval"):
        limit = getattr(trainer, name)
        if isinstance(limit, int) and accumulate_grad_batches != configured:
            batches, remainder = divmod(limit * accumulate_grad_batches, configured)
            if remainder:
                raise UserError(
                    f"trainer.{name}={limit}, in batches of {configured} a step, is no whole number of batches for "
                    f"{trainer.world_size} ranks, which take {accumulate_grad_batches} a step: start as many ranks as "
                    f"before"
                )
            setattr(trainer, name, batches)


def describe_batch_sharding(trainer: pl.Trainer, batch_size: int | None) -> str:
    """How a job's ranks share its work, once its training begins.

    Args:
        trainer: at its first batch.
        batch_size: samples of an optimizer step, over all ranks; None where nobody says.
    """
    world_size, accumulate_grad_batches = trainer.world_size, trainer.accumulate_grad_batches
    parts = f"{pluralize(world_size, 'rank')} x {pluralize(accumulate_grad_batches, 'batch')} a step"
    if batch_size is not None:
        parts += f" x {pluralize(batch_size // (world_size * accumulate_grad_batches), 'sample')} = {batch_size}"
    batches = trainer.num_training_batches
    if batches == float("inf"):
        return f"{parts}; the learning rate is as given, not scaled"
    steps, total_steps = -(-int(batches) // accumulate_grad_batches), trainer.estimated_stepping_batches
    return (
        f"{parts}; {pluralize(steps, 'step')} an epoch, {total_steps:,} in all; the learning rate is as "
        f"given, not scaled"
    )
