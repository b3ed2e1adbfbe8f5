"""Rolls back weights and optimizer states to a checkpoint during training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint import Checkpoint, Store
from stormproof.checkpoint.async_writer import CheckpointWriter
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.retention import to_delete
from stormproof.distributed.collectives import agree, everyone, on_rank_zero
from stormproof.errors import DivergedError, StorageError
from stormproof.resume import model_state, snapshot

MARGIN_STEPS = 10
"""Healthy steps that must follow a checkpoint before it is trusted. Divergence starts before it is detected."""


def go_back(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    store: Store,
    writer: CheckpointWriter | None,
    callbacks: Iterable[pl.Callback],
    since: int,
    proven: Collection[int],
) -> dict[str, Any]:
    """Restores the newest trusted checkpoint, or the oldest one if none is trusted. All ranks must call this together.

    Moves later checkpoints to ``quarantine/``, because their weights may have diverged.

    Args:
        trainer: Trainer during ``fit``, between two optimizer steps.
        module: Module that it trains.
        store: Store of the checkpoints.
        writer: Writer of the checkpoints on rank 0, None on other ranks.
        callbacks: Callbacks whose state is restored.
        since: First step at which training diverged.
        proven: Steps of earlier rollbacks. Checkpoints saved at these steps are trusted.

    Returns:
        Lightning checkpoint that was restored, with the states of this rank.

    Raises:
        DivergedError: On every rank, with exit code 76, if there is no healthy checkpoint.
        StorageError: On every rank, with exit code 74, if a rank cannot read it.
        RanksDisagreeError: On every rank, if the ranks read different checkpoints.
    """
    path = on_rank_zero(lambda: _prepare(store, writer, since, proven))
    if path is None:
        raise DivergedError(
            f"training diverges since step {since}, and there is no good checkpoint to go back to in {store.folder}"
        )
    checkpoint = _read(path)
    set_back(trainer, module, checkpoint, callbacks)
    return checkpoint


def by_trust(kept: Sequence[Checkpoint], since: int, proven: Collection[int]) -> list[Checkpoint]:
    """Returns checkpoints in the order of a rollback: trusted ones newest first, then others oldest first.

    Args:
        kept: Checkpoints, oldest first.
        since: First step at which training diverged.
        proven: Steps of earlier rollbacks. Checkpoints saved at these steps are trusted.
    """
    own = [each for each in kept if each.finite and not each.adopted]  # others lack the states that a rollback restores
    trusted = [each for each in own if each.step in proven or each.step <= since - MARGIN_STEPS]
    return [*reversed(trusted), *(each for each in own if each not in trusted)]


def _prepare(store: Store, writer: CheckpointWriter | None, since: int, proven: Collection[int]) -> str | None:
    """Returns the path of the checkpoint to restore, verified, and quarantines later ones. Runs on rank 0."""
    assert writer is not None
    writer.is_free()  # waits for a write in progress
    writer.look()  # reports a failed write
    found = store.checkpoints()
    gone = {each.name for each in to_delete(found, writer.retention)}  # may still exist if an attempt was killed
    kept = [each for each in found if each.name not in gone]
    good = next((each for each in by_trust(kept, since, proven) if store.verify(each) is None), None)
    if good is None:
        return None
    newer = [each for each in found if each.sequence > good.sequence]
    try:
        store.set_aside(newer, f"training diverged at step {since}", fence=writer.hold.fence)
    except OSError as error:
        rank_zero_warn(f"what was saved on the way into the divergence could not be set aside: {error}")
    return str(good.path)


def _read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    failure = None
    try:
        content = retry_read(lambda: torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # noqa: BLE001 (the other ranks wait for the outcome)
        failure = f"{path}: {error}"
    failed = [(rank, words) for rank, words in enumerate(everyone(failure)) if words]
    if failed:
        raise StorageError(f"rank {failed[0][0]} cannot go back to a checkpoint: {failed[0][1]}")
    agree("the checkpoint to go back to", str(content[snapshot.KEY]["id"]))
    return content


@torch.no_grad()
def set_back(
    trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any], callbacks: Iterable[pl.Callback]
) -> None:
    """Restores weights and optimizer states during training.

    Restores parameters, buffers, accumulated gradients, optimizer states, the gradient scaler, and entries that
    callbacks and the module add in ``on_save_checkpoint``, for example averaged weights. Each rank restores its own.
    Does not change the data position, random states, counters, metrics, schedules and the hyperparameters of the
    optimizers. The learning rate stays at its current value.

    Args:
        trainer: Trainer during ``fit``, between two optimizer steps.
        module: Module that it trains.
        checkpoint: Checkpoint of CheckpointRecovery. Modified in place: this rank's states replace those of rank 0.
        callbacks: Callbacks whose ``on_load_checkpoint`` is called.
    """
    here = (trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
    snapshot.restore_entries(checkpoint, *here[:2])
    part = snapshot.own_part(checkpoint, *here)
    module.on_load_checkpoint(checkpoint)
    model_state.set_back(trainer, module, checkpoint, part.snapshot.ranks[0].parameters)
    model_state.forget_steps(trainer, part.snapshot.shared.untouched)
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
    for callback in callbacks:
        callback.on_load_checkpoint(trainer, module, checkpoint)
    snapshot.restore_tensors(trainer, module, part)
    precision = trainer.precision_plugin
    saved = checkpoint.get(type(precision).__qualname__)
    if saved is not None:
        precision.load_state_dict(saved)
