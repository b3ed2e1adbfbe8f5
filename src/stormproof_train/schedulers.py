"""Learning-rate schedules that torch does not have in one piece."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def none() -> None:
    """A constant learning rate."""


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.05, final_fraction: float = 0.0
) -> LRScheduler:
    r"""Linear warm-up to the optimizer's lr, then a cosine down to a fraction of it.

    With :math:`w` warm-up steps of :math:`T`, the factor at step :math:`t` is :math:`(t + 1) / (w + 1)` before
    :math:`w`, and :math:`f + (1 - f)(1 + \cos(\pi (t - w) / (T - w))) / 2` from there on.

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: optimizer steps of the run, at least 1.
        warmup_fraction: share of them that warms up, in [0, 1).
        final_fraction: f, the last learning rate as a fraction of the first, in [0, 1].

    Raises:
        ValueError: if a fraction is out of its range.

    References:
        Loshchilov & Hutter, SGDR, 2017, equation 5; Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.2.
    """
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"warmup_fraction is {warmup_fraction}; it must be in [0, 1)")
    if not 0 <= final_fraction <= 1:
        raise ValueError(f"final_fraction is {final_fraction}; it must be in [0, 1]")
    warmup_steps = int(total_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
