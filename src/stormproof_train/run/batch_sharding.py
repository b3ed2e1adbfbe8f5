"""Distributes the batch of an optimizer step over the ranks."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof_train.errors import UserError
from stormproof_train.pluralize import pluralize


def compute_accumulation(
    configured: int, world_size: int, initial_sharding: tuple[int, int] | None, batch_size: int | None
) -> int:
    """Returns the batches per step on each rank if a run resumes with another number of ranks.

    The batch of all ranks together stays the same. Fewer ranks accumulate more batches, so that no forward pass has
    more samples than in the first attempt and memory suffices.

    Args:
        configured: Batches per step in the config.
        world_size: World size of this attempt.
        initial_sharding: World size, and batches per step on each rank, of the first attempt. None in the first
            attempt.
        batch_size: Samples per step over all ranks. None if unknown.

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
    """Sets the number of batches per step, and scales the Trainer's limits in batches.

    Args:
        trainer: Trainer as built from the config.
        initial_sharding: World size, and batches per step on each rank, of the first attempt. None in the first
            attempt.
        batch_size: Samples per step over all ranks. None if unknown.

    Raises:
        UserError: If a limit is no longer a whole number of batches.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (set in __init__)
    if any(hasattr(callback, "get_accumulate_grad_batches") for callback in callbacks):
        return  # the callback determines the number
    configured = trainer.accumulate_grad_batches
    accumulate_grad_batches = compute_accumulation(configured, trainer.world_size, initial_sharding, batch_size)
    trainer.accumulate_grad_batches = accumulate_grad_batches
    for name in ("limit_train_batches", "val_check_interval"):
        limit = getattr(trainer, name)
        if isinstance(limit, int) and accumulate_grad_batches != configured:
            batches, remainder = divmod(limit * accumulate_grad_batches, configured)
            if remainder:
                raise UserError(
                    f"trainer.{name}={limit} is not a whole number of batches for "
                    f"{pluralize(trainer.world_size, 'rank')} with {accumulate_grad_batches} batches per step (before: "
                    f"{configured}). Start the previous number of ranks."
                )
            setattr(trainer, name, batches)


def describe_batch_sharding(trainer: pl.Trainer, batch_size: int | None) -> str:
    """Describes the distribution of the batch over the ranks.

    Args:
        trainer: Trainer at its first batch.
        batch_size: Samples per optimizer step over all ranks. None if unknown.
    """
    world_size, accumulate_grad_batches = trainer.world_size, trainer.accumulate_grad_batches
    parts = f"{pluralize(world_size, 'rank')} x {pluralize(accumulate_grad_batches, 'batch')} per step"
    if batch_size is not None:
        parts += f" x {pluralize(batch_size // (world_size * accumulate_grad_batches), 'sample')} = {batch_size}"
    batches = trainer.num_training_batches
    if batches == float("inf"):
        return f"{parts}; the learning rate is not scaled"
    steps, total_steps = -(-int(batches) // accumulate_grad_batches), trainer.estimated_stepping_batches
    return f"{parts}; {pluralize(steps, 'step')} per epoch, {total_steps:,} in total; the learning rate is not scaled"
