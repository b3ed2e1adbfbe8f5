"""Observes and replaces Lightning's gradient clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.lightning.method_replacement import call_before, is_from_user, replace

_CLIPPING_METHODS = ("_after_closure", "_clip_gradients", "clip_gradients", "clip_grad_by_norm", "main_params")


def call_before_clipping(
    trainer: pl.Trainer, function: Callable[[torch.optim.Optimizer, float, bool], None]
) -> Callable[[], None]:
    """Calls ``function(optimizer, clip_val, by_value)`` before gradients are clipped.

    This covers all callers of ``LightningModule.clip_gradients``: the trainer's ``gradient_clip_val``, an overridden
    ``configure_gradient_clipping``, and manual optimization, where clipping precedes ``on_before_optimizer_step``.

    Returns:
        Function that undoes this.
    """

    def on_clip(optimizer: torch.optim.Optimizer, clip_val: float = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
        if clip_val > 0:
            function(optimizer, clip_val, gradient_clip_algorithm == "value")

    return call_before(trainer.precision_plugin, "clip_gradients", on_clip)


def call_for_norm_clipping(
    trainer: pl.Trainer, clip: Callable[[list[torch.nn.Parameter], float], bool]
) -> Callable[[], None]:
    """Calls ``clip(parameters, max_norm)`` where Lightning clips gradients by norm.

    Lightning clips if ``clip`` returns False. ``clip`` is not called if the precision plugin has methods of the
    user.

    Returns:
        Function that undoes this.
    """
    plugin = trainer.precision_plugin
    original_clip = plugin.clip_grad_by_norm
    if any(is_from_user(plugin, name) for name in _CLIPPING_METHODS) or (
        original_clip.__qualname__ != "Precision.clip_grad_by_norm"  # FSDP has another one
    ):
        return lambda: None

    def clip_grad_by_norm(optimizer: Any, clip_val: float) -> None:
        if not clip(list(plugin.main_params(optimizer)), clip_val):
            original_clip(optimizer, clip_val)

    return replace(plugin, "clip_grad_by_norm", clip_grad_by_norm)
