"""The best constant, searched for where there is no closed form."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def lowest(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    target: torch.Tensor,
    starts: torch.Tensor,
    refined: int = 4,
) -> float:
    """The lowest value of a loss found among outputs that are the same for all samples.

    L-BFGS in float64, from those starts that are the best as they stand. For a convex loss this is the minimum; for any
    other it is the lowest of the valleys that the starts lie in. Where the infimum is at infinity, it is met to some
    digits.

    Args:
        loss: maps (outputs (N, D), target) to a scalar; stays as it is.
        target: (N,) indices or (N, …) numbers.
        starts: (S, D) in float64.
        refined: how many of the starts are gone on from, at least 1.

    Example:
        >>> target = torch.tensor([[0.0], [0.0], [4.0]])
        >>> round(lowest(nn.HuberLoss(), target, torch.zeros(1, 1, dtype=torch.float64)), 4)
        1.0833
    """
    exact = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
    known = target.double() if target.is_floating_point() else target

    def value(constant: torch.Tensor) -> torch.Tensor:
        return exact(constant.expand(len(known), -1), known)

    with torch.no_grad():
        values = torch.stack([value(start) for start in starts]).nan_to_num(nan=torch.inf)
    return min(_descend(value, starts[index]) for index in values.argsort()[:refined])


def _descend(value: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> float:
    constant = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [constant], max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )
    seen: list[float] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = value(constant)
        loss.backward()
        seen.append(loss.item())
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return min(each for each in seen if each == each)  # noqa: PLR0124 (not NaN)
