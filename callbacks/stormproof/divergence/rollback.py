"""Rolls back weights and optimizer states to a checkpoint during training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint import Checkpoint, Store
from stormproof.checkpoint.file_names import UNSHARDED_FILE
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.retention import select_for_deletion
from stormproof.distributed.collectives import all_gather, assert_equal, run_on_rank_zero
from stormproof.errors import DivergedError, StorageError
from stormproof.lightning.layout import Layout
from stormproof.resume import model_state, refused_state, snapshot
from stormproof.resume.save_coordinator import SaveCoordinator

MARGIN_STEPS = 10
"""Healthy steps that must follow a checkpoint before it is trusted. Divergence starts before it is detected."""


def roll_back(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    store: Store,
    coordinator: SaveCoordinator,
    callbacks: Iterable[pl.Callback],
    since_step: int,
    trusted_steps: Collection[int],
) -> dict[str, Any]:
    """Restores the newest trusted checkpoint, or the oldest one if none is trusted. All ranks must call this together.

    Moves later checkpoints to ``quarantine/``, because their weights may have diverged.

    Args:
        trainer: Trainer during ``fit``, between two optimizer steps.
        module: Module that it trains.
        store: Store of the checkpoints.
        coordinator: Coordinator of the checkpoints.
        callbacks: Callbacks whose state is restored.
        since_step: First step at which training diverged.
        trusted_steps: Steps of earlier rollbacks. Checkpoints saved at these steps are trusted.

    Returns:
        Lightning checkpoint that was restored, with the states of this rank.

    Raises:
        DivergedError: On every rank, with exit code 76, if there is no healthy checkpoint.
        StorageError: On every rank, with exit code 74, if a rank cannot read it.
        RanksDisagreeError: On every rank, if the ranks read different checkpoints.
    """
    selected_checkpoint = run_on_rank_zero(lambda: _select_checkpoint(store, coordinator, since_step, trusted_steps))
    if selected_checkpoint is None:
        raise DivergedError(
            f"training diverges since step {since_step}, and there is no good checkpoint to roll back to in "
            f"{store.location}"
        )
    checkpoint, folder = _load_checkpoint(store, selected_checkpoint)
    restore_state(trainer, module, checkpoint, callbacks, folder)
    if folder is not None:
        all_gather(None)  # all ranks have read it
    store.catalog.discard_copy(selected_checkpoint)
    return checkpoint


def order_by_trust(
    checkpoints: Sequence[Checkpoint], since_step: int, trusted_steps: Collection[int]
) -> list[Checkpoint]:
    """Returns checkpoints in the order of a rollback: trusted ones newest first, then others oldest first.

    Args:
        checkpoints: Checkpoints, oldest first.
        since_step: First step at which training diverged.
        trusted_steps: Steps of earlier rollbacks. Checkpoints saved at these steps are trusted.
    """
    restorable_checkpoints = [
        checkpoint for checkpoint in checkpoints if checkpoint.finite and not checkpoint.adopted
    ]  # others lack the states that a rollback restores
    trusted_checkpoints = [
        checkpoint
        for checkpoint in restorable_checkpoints
        if checkpoint.step in trusted_steps or checkpoint.step <= since_step - MARGIN_STEPS
    ]
    return [
        *reversed(trusted_checkpoints),
        *(checkpoint for checkpoint in restorable_checkpoints if checkpoint not in trusted_checkpoints),
    ]


def _select_checkpoint(
    store: Store, coordinator: SaveCoordinator, since_step: int, trusted_steps: Collection[int]
) -> Checkpoint | None:
    """Returns the checkpoint to restore, verified, and quarantines later ones. Runs on rank 0."""
    writer = coordinator.writer
    assert writer is not None
    writer.wait_until_free()  # waits for a write in progress
    writer.check_last_write()  # reports a failed write
    checkpoints = store.read_checkpoints()
    expired_names = {
        checkpoint.name for checkpoint in select_for_deletion(checkpoints, writer.retention)
    }  # may still exist if an attempt was killed
    retained_checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint.name not in expired_names]
    selected_checkpoint = next(
        (
            checkpoint
            for checkpoint in order_by_trust(retained_checkpoints, since_step, trusted_steps)
            if store.verify(checkpoint) is None
        ),
        None,
    )
    if selected_checkpoint is None:
        return None
    try:
        coordinator.discard_copies()
    except OSError as error:
        rank_zero_warn(f"A run that is killed soon may resume from diverged weights: {error.strerror}.")
    later_checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint.sequence > selected_checkpoint.sequence]
    try:
        store.quarantine(later_checkpoints, f"training diverged at step {since_step}", fence=writer.ownership.fence)
    except OSError as error:
        rank_zero_warn(f"Checkpoints of diverged weights could not be moved to quarantine/: {error}")
    return selected_checkpoint


def _load_checkpoint(store: Store, selected_checkpoint: Checkpoint) -> tuple[dict[str, Any], Path | None]:
    """Loads the checkpoint on every rank and verifies that all ranks loaded the same one.

    Returns:
        The full checkpoint and None, or the unsharded state and the folder of a sharded checkpoint.
    """
    checkpoint: dict[str, Any] = {}
    failure = folder = None
    try:
        path = store.fetch(selected_checkpoint)
        if selected_checkpoint.files is not None:
            folder, path = path, path / UNSHARDED_FILE
        checkpoint = retry_read(lambda: torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # noqa: BLE001 (the other ranks wait for the outcome)
        failure = f"{store.storage.locate(selected_checkpoint.path.name)}: {error}"
    failures = [(rank, message) for rank, message in enumerate(all_gather(failure)) if message]
    if failures:
        raise StorageError(f"rank {failures[0][0]} cannot read the checkpoint for a rollback: {failures[0][1]}")
    assert_equal("the checkpoint to roll back to", str(checkpoint[snapshot.KEY]["id"]))
    return checkpoint, folder


@torch.no_grad()
def restore_state(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    checkpoint: dict[str, Any],
    callbacks: Iterable[pl.Callback],
    folder: Path | None = None,
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
        folder: Folder with the parameters and optimizer states of a sharded checkpoint. None if they are in
            ``checkpoint``.
    """
    layout = Layout.of(trainer)
    refused_state.restore(trainer, checkpoint)
    snapshot.restore_entries(checkpoint, layout)
    rank_state = snapshot.select_rank(checkpoint, layout, trainer.accumulate_grad_batches)
    module.on_load_checkpoint(checkpoint)
    unsaved = rank_state.snapshot.rank_states[0].parameters
    model_state.restore_model(trainer, module, layout, checkpoint, unsaved, folder)
    model_state.clear_optimizer_states(trainer, rank_state.snapshot.job_state.unstepped_optimizers)
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
    for callback in callbacks:
        callback.on_load_checkpoint(trainer, module, checkpoint)
    snapshot.restore_tensors(trainer, module, rank_state)
    precision = trainer.precision_plugin
    precision_state = checkpoint.get(type(precision).__qualname__)
    if precision_state is not None:
        precision.load_state_dict(precision_state)
