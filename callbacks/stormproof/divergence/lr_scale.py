"""A learning-rate scale that does not interfere with schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch.optim import Optimizer


class LearningRateScale:
    """Multiplies the learning rates of optimizers by ``factor`` during ``optimizer.step()`` only.

    The original rates are restored after each step. Schedulers therefore never read or overwrite a scaled rate.

    Attributes:
        factor: Learning-rate scale in (0, 1]. Can be changed between two steps.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> lowered = LearningRateScale()
        >>> lowered.factor = 0.25
        >>> undo = lowered.attach([optimizer])
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> weight.item(), optimizer.param_groups[0]["lr"]
        (-0.25, 1.0)
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def attach(self, optimizers: Iterable[Optimizer]) -> list[Callable[[], None]]:
        """Scales the learning rates of ``optimizers`` from now on. Returns functions that undo this."""
        restorers: list[Callable[[], None]] = []
        for optimizer in optimizers:
            saved_rates: list[Any] = []
            restorers.append(optimizer.register_step_pre_hook(self._scale_hook(saved_rates)).remove)
            restorers.append(optimizer.register_step_post_hook(_restore_hook(saved_rates)).remove)
            restorers.append(partial(_restore_hook(saved_rates), optimizer))  # in case a step raises an error
        return restorers

    def _scale_hook(self, saved_rates: list[Any]) -> Callable[..., None]:
        def scale(optimizer: Optimizer, *_: Any) -> None:
            saved_rates[:] = [group["lr"] for group in optimizer.param_groups]
            if self.factor != 1.0:
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] * self.factor

        return scale


def _restore_hook(saved_rates: list[Any]) -> Callable[..., None]:
    def restore(optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, saved_rates, strict=False):
            group["lr"] = rate
        saved_rates.clear()

    return restore
