"""Base class of regression losses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from stormproof_train.losses.constant_search import minimize_constant
from stormproof_train.losses.contract import TaskName


class RegressionLoss(nn.Module):
    """Loss that is a mean over samples and outputs, so the best constants of the outputs are independent.

    The best constant is found by optimization. Subclasses override ``best_constant`` with closed forms.
    """

    task: ClassVar[TaskName] = "regression"

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the best outputs that are equal for all samples.

        Args:
            target: Numbers ``(batch, outputs)`` in the scale of the loss.
        """
        columns = target.double().split(1, dim=1)
        return statistics.fmean(minimize_constant(self, column, initial_outputs(column)) for column in columns)


def initial_outputs(target: torch.Tensor) -> torch.Tensor:
    """Returns starting points ``(points, outputs)`` for targets ``(batch, outputs)``: the mean and 65 quantiles."""
    return torch.cat([target.mean(dim=0, keepdim=True), quantiles(target, torch.linspace(0, 1, 65).tolist())])


def quantiles(target: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """Returns the smallest value of each column with at least the share ``level`` of the values at or below it.

    Unlike torch.quantile it does not interpolate, and it accepts more than 16 million numbers.

    Args:
        target: Numbers ``(batch, outputs)``.
        levels: Levels, each in [0, 1].

    Returns:
        Tensor of shape ``(levels, outputs)``.

    Example:
        >>> quantiles(torch.tensor([[3.0], [1.0], [2.0], [9.0]]), [0.5, 0.9]).flatten().tolist()
        [2.0, 9.0]
    """
    ordered = target.sort(dim=0).values
    rows = [max(math.ceil(level * len(target)) - 1, 0) for level in levels]
    return ordered[rows]
