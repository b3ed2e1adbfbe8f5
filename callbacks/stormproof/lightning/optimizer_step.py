"""Inspects the next optimizer step and its gradient scaling, and skips it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer


def find_optimizer_index(trainer: pl.Trainer, optimizer: Any) -> int | None:
    """Returns the index of an optimizer in ``trainer.optimizers``. None if the trainer does not have it."""
    unwrapped_optimizer = getattr(optimizer, "optimizer", optimizer)  # manual optimization wraps optimizers
    return next(
        (
            index
            for index, trainer_optimizer in enumerate(trainer.optimizers)
            if trainer_optimizer in (unwrapped_optimizer, optimizer)
        ),
        None,
    )


def get_scaler(trainer: pl.Trainer) -> Any:
    """Returns the gradient scaler. None without an enabled one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def unscales_gradients(optimizer: Optimizer) -> bool:
    """Returns whether the optimizer unscales gradients in its step, as fused optimizers do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def get_gradients(optimizer: Optimizer) -> list[torch.Tensor]:
    """Returns the gradients of the optimizer's parameters."""
    gradients = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return [gradient for gradient in gradients if gradient is not None]


def skip_step(optimizer: Optimizer, scaler: Any) -> None:
    """Skips the next step, so that it changes neither weights nor optimizer states.

    Args:
        optimizer: Optimizer with gradients, before its step.
        scaler: Gradient scaler, or None. Its scale is halved if the optimizer unscales gradients itself.
    """
    if scaler is not None and unscales_gradients(optimizer):  # the scaler raises an error without gradients
        for gradient in get_gradients(optimizer):
            gradient.fill_(torch.inf)  # the scaler skips the step
    else:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
