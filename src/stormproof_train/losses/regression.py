"""What the losses for regression have in common."""

from __future__ import annotations

import statistics
from typing import ClassVar

import torch
from torch import nn

from stormproof_train.losses.constant_search import minimize_constant
from stormproof_train.losses.contract import TaskName
from stormproof_train.losses.quantiles import quantiles


class RegressionLoss(nn.Module):
    """A mean over samples and outputs, so that the best constant is that of each output alone.

    It is searched for; a subclass with a closed form gives that instead.
    """

    task: ClassVar[TaskName] = "regression"

    def best_constant(self, target: torch.Tensor) -> float:
        """The value of the loss for the best outputs that are the same for all samples.

        Args:
            target: (N, outputs), scaled as the loss sees it.
        """
        columns = target.double().split(1, dim=1)
        return statistics.fmean(minimize_constant(self, column, initial_outputs(column)) for column in columns)


def initial_outputs(target: torch.Tensor) -> torch.Tensor:
    """Outputs (S, outputs) to search from: the mean, and quantiles of (N, outputs) targets, among them the median."""
    return torch.cat([target.mean(dim=0, keepdim=True), quantiles(target, torch.linspace(0, 1, 65).tolist())])
