"""Finds the best constant prediction of losses that have no closed form."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def minimize_constant(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    target: torch.Tensor,
    initial_points: torch.Tensor,
    num_refined: int = 4,
) -> float:
    """Returns the lowest loss found among outputs that are equal for all samples.

    Runs L-BFGS in float64 from the starting points with the lowest losses. For convex losses the result is the minimum.
    For other losses it is the lowest of the local minima that are reached. An infimum at infinity is approximated.

    Args:
        loss: Maps (outputs ``(batch, outputs)``, target) to a scalar. It is not modified.
        target: Class indices ``(batch,)`` or numbers ``(batch, …)``.
        initial_points: Starting points ``(points, outputs)`` in float64.
        num_refined: Number of starting points to optimize from. Must be at least 1.

    Example:
        >>> target = torch.tensor([[0.0], [0.0], [4.0]])
        >>> round(minimize_constant(nn.HuberLoss(), target, torch.zeros(1, 1, dtype=torch.float64)), 4)
        1.0833
    """
    double_loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
    double_target = target.double() if target.is_floating_point() else target

    def objective(constant: torch.Tensor) -> torch.Tensor:
        return double_loss(constant.expand(len(double_target), -1), double_target)

    with torch.no_grad():
        values = torch.stack([objective(initial_point) for initial_point in initial_points]).nan_to_num(nan=torch.inf)
    return min(_run_lbfgs(objective, initial_points[index]) for index in values.argsort()[:num_refined])


def _run_lbfgs(objective: Callable[[torch.Tensor], torch.Tensor], initial_point: torch.Tensor) -> float:
    constant = initial_point.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [constant], max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )
    losses: list[float] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(constant)
        loss.backward()
        losses.append(loss.item())
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return min(loss_value for loss_value in losses if loss_value == loss_value)  # noqa: PLR0124 (not NaN)
