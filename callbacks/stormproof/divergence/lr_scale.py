"""A learning rate that stays lower whatever a scheduler makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch.optim import Optimizer


class LoweredRate:
    """Multiplies the learning rates of optimizers by ``factor``, within their steps alone.

    A scheduler sets a rate from the step it is at, or from the rate as it was: either way it never sees the factor, and
    neither is undone by the other.

    Attributes:
        factor: in (0, 1]; may be changed between two steps.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> lowered = LoweredRate()
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
        """From here on, acts on them; returns what ends that."""
        ends: list[Callable[[], None]] = []
        for optimizer in optimizers:
            rates: list[Any] = []
            ends.append(optimizer.register_step_pre_hook(self._lower(rates)).remove)
            ends.append(optimizer.register_step_post_hook(_put_back(rates)).remove)
            ends.append(partial(_put_back(rates), optimizer))  # of a step that an error has ended
        return ends

    def _lower(self, rates: list[Any]) -> Callable[..., None]:
        def lower(optimizer: Optimizer, *_: Any) -> None:
            rates[:] = [group["lr"] for group in optimizer.param_groups]
            if self.factor != 1.0:
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] * self.factor

        return lower


def _put_back(rates: list[Any]) -> Callable[..., None]:
    def put_back(optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        rates.clear()

    return put_back
