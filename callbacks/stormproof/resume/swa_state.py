"""Resumes Lightning's StochasticWeightAveraging in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from stormproof.lightning import internals


def capture(trainer: pl.Trainer) -> list[dict[str, Any]] | None:
    """Returns the hyperparameters of the optimizer. None without StochasticWeightAveraging, or before it starts."""
    if not any(callback.n_averaged is not None for callback in _find_swa_callbacks(trainer)):
        return None
    return [_without_parameters(group) for group in trainer.optimizers[0].param_groups]


def restore(trainer: pl.Trainer, module: pl.LightningModule, hyperparameters: list[dict[str, Any]] | None) -> None:
    """Starts the averaging again. Call it between two batches, after Lightning has loaded the checkpoint.

    The callback builds its schedule and prepares the last epoch in ``on_train_epoch_start``, which Lightning skips if
    it resumes in the middle of an epoch. Building the schedule changes the learning rate, so the saved hyperparameters
    are set afterwards.

    Args:
        trainer: Trainer in ``fit``.
        module: Module to train.
        hyperparameters: From :func:`capture`.
    """
    if hyperparameters is None:
        return
    for callback in _find_swa_callbacks(trainer):
        is_last_epoch = trainer.current_epoch == callback.swa_end + 1
        is_prepared = (
            hasattr(callback, "_accumulate_grad_batches") if is_last_epoch else callback.n_averaged is not None
        )
        if not is_prepared:
            callback.on_train_epoch_start(trainer, module)
    for group, saved_group in zip(trainer.optimizers[0].param_groups, hyperparameters, strict=True):
        group.update(saved_group)


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _find_swa_callbacks(trainer: pl.Trainer) -> list[Any]:
    callbacks = internals.callbacks(trainer)
    name = "StochasticWeightAveraging"  # in pytorch_lightning or lightning.pytorch
    return [callback for callback in callbacks if name in {cls.__name__ for cls in type(callback).__mro__}]
