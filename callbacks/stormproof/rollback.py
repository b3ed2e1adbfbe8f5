"""A training set back to a checkpoint in its place, while its data and its schedules go on."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof import exact_state, lightning_internals
from stormproof.agreement import agree, everyone
from stormproof.checkpoint import Checkpoint
from stormproof.checkpoint.retention import to_delete
from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.errors import StorageError

MARGIN_STEPS = 10
"""A checkpoint is trusted once this many steps after it were healthy: a training is ill some time before it shows."""


def choose(recovery: CheckpointRecovery, ill_since: int, proven: Collection[int]) -> Checkpoint | None:
    """The newest good checkpoint that can be trusted; the oldest there is, if none can; None if there is none at all.

    On rank 0. One that is being written is waited for. Those that are newer are set aside: what was saved on the way
    into an illness must neither be gone on from, nor have what is healthy deleted in its favour.

    Args:
        recovery: its folder is looked at, and verified.
        ill_since: the step at which it first showed.
        proven: steps whose checkpoints hold weights that were trusted before, as it was gone back to them.
    """
    writer = recovery.saving.writer
    if writer is not None:
        with suppress(StorageError):  # then there is none of that step
            writer.finish()
    found = recovery.store.checkpoints()
    gone = {each.name for each in to_delete(found, recovery.retention)}  # perhaps not yet, if an attempt was killed
    kept = [each for each in reversed(found) if each.finite and not each.adopted and each.name not in gone]
    trusted = [each for each in kept if each.step in proven or each.step <= ill_since - MARGIN_STEPS]
    rest = [each for each in reversed(kept) if each not in trusted]
    good = next((each for each in (*trusted, *rest) if recovery.store.verify(each) is None), None)
    newer = [each for each in found if good is not None and each.sequence > good.sequence]
    if newer and writer is not None:
        recovery.store.set_aside(newer, f"training fell ill at step {ill_since}", fence=writer.hold.fence)
    return good


def read(checkpoint_path: str) -> dict[str, Any]:
    """The checkpoint, on every rank; all call it together.

    Raises:
        StorageError: on every rank, if one cannot read it.
        RanksDisagreeError: on every rank, if what they read is not the same.
    """
    content: dict[str, Any] = {}
    failure = None
    try:
        content = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    except OSError as error:
        failure = f"{checkpoint_path}: {error.strerror or error}"
    failed = [(rank, words) for rank, words in enumerate(everyone(failure)) if words]
    if failed:
        raise StorageError(f"rank {failed[0][0]} cannot go back to a checkpoint: {failed[0][1]}")
    agree("the checkpoint to go back to", str(content[exact_state.KEY]["id"]))
    return content


@torch.no_grad()
def set_back(trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Sets back what the training has learnt; what only counts its steps goes on.

    Back go parameters and buffers, each rank's own too, the optimizers' states, the gradient scaler, and whatever
    callbacks and the module keep by ``on_save_checkpoint`` and ``on_load_checkpoint``, such as averages of the weights.
    On go the position in the data, random number generators, counters, metrics, schedules and, with them, the
    hyperparameters of the optimizers: the learning rate is that of the step which the training is at.

    Args:
        trainer: in a fit, between two steps.
        module: what it trains.
        checkpoint: what :func:`read` returned; it is changed.
    """
    own = exact_state.own_part(checkpoint, trainer.global_rank, trainer.world_size)["own"]
    module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
    for callback in lightning_internals.callbacks(trainer):
        if not isinstance(callback, CheckpointRecovery):
            callback.on_load_checkpoint(trainer, module, checkpoint)
    buffers = dict(module.named_buffers())
    for name, value in own["buffers"].items():
        buffers[name].copy_(value)
    for optimizer, saved in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        current = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": saved["state"], "param_groups": current})
        optimizer.zero_grad()
    precision = trainer.precision_plugin
    saved = checkpoint.get(type(precision).__qualname__)
    if saved is not None:
        precision.load_state_dict(saved)
