"""The optimizer step that is about to be taken: whose it is, how its gradient is scaled, and how it is skipped."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer


def find_optimizer_index(trainer: pl.Trainer, optimizer: Any) -> int | None:
    """The number of an optimizer among the trainer's; None of a stranger that a module steps by itself."""
    unwrapped_optimizer = getattr(optimizer, "optimizer", optimizer)  # manual optimization holds them wrapped
    return next(
        (
            index
            for index, trainer_optimizer in enumerate(trainer.optimizers)
            if trainer_optimizer in (unwrapped_optimizer, optimizer)
        ),
        None,
    )


def get_scaler(trainer: pl.Trainer) -> Any:
    """The gradient scaler; None where there is none, or it is not enabled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def unscales_gradients(optimizer: Optimizer) -> bool:
    """Whether the gradient is still scaled before its step: a fused optimizer unscales it within."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def get_gradients(optimizer: Optimizer) -> list[torch.Tensor]:
    """The gradients that its step would use."""
    gradients = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return [gradient for gradient in gradients if gradient is not None]


def skip_step(optimizer: Optimizer, scaler: Any) -> None:
    """Has the step that is about to be taken change neither weights nor the optimizer's state.

    Args:
        optimizer: whose gradients are there, and not used yet.
        scaler: of the gradient, or None. Where the optimizer unscales by itself, its scale is halved by this.
    """
    if scaler is not None and unscales_gradients(optimizer):  # without gradients the scaler fails
        for gradient in get_gradients(optimizer):
            gradient.fill_(torch.inf)  # none of which it lets pass
    else:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
