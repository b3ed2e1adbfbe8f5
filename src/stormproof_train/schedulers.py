"""Learning-rate schedules that torch does not provide as one class."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def none() -> None:
    """Selects a constant learning rate."""


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.05, final_fraction: float = 0.0
) -> LRScheduler:
    r"""Returns a schedule with linear warm-up to the optimizer's learning rate, followed by cosine decay.

    With :math:`w` warm-up steps of :math:`T`, the factor at step :math:`t` is :math:`(t + 1) / (w + 1)` before step
    :math:`w`, and :math:`f + (1 - f)(1 + \cos(\pi (t - w) / (T - w))) / 2` after it.

    Args:
        optimizer: Optimizer whose learning rates are scheduled.
        total_steps: Number of optimizer steps of the run. Must be at least 1.
        warmup_fraction: Fraction of the steps for warm-up, in [0, 1).
        final_fraction: The fraction f of the learning rate at the end, in [0, 1].

    Raises:
        ValueError: If a fraction is out of range.

    References:
        Loshchilov & Hutter, SGDR, 2017, equation 5.
        Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.2.
    """
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"`warmup_fraction` must be in [0, 1), got {warmup_fraction}.")
    if not 0 <= final_fraction <= 1:
        raise ValueError(f"`final_fraction` must be in [0, 1], got {final_fraction}.")
    warmup_steps = int(total_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
