"""What the loss of a step is compared with: a constant prediction's, and that of other samples' targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from stormproof.event_log import log_event
from stormproof.health.observers.input_target_dependence import DependenceTest
from stormproof.health.observers.objective import (
    Objective,
    TargetPool,
    compute_prediction_stats,
    find_objective,
    list_data_losses,
)
from stormproof.health.observers.step_trace import StepTrace
from stormproof.health.record import Comparison, PredictionStats

MAX_UNKNOWN_LOSSES = 5
"""Close looks, after which a loss that nothing reproduces is looked for no longer."""


class BaselineEvaluator:
    """Finds the loss of the steps that are looked at, and what else it would have been.

    Args:
        module: whose steps.
        user_loss: the loss, if the user told.

    Attributes:
        objective: the last loss known, without its tensors.
        target_pool: the targets seen.
        dependence_test: some of the inputs, with their targets.
        target_indices: Indices of the batch tensors that are targets of the loss. Empty until known.
    """

    def __init__(self, module: nn.Module, user_loss: Callable[..., Any] | None) -> None:
        self._module, self._user_loss = module, user_loss
        self._unknown_losses = 0  # close looks whose loss nothing reproduced
        self.objective: Objective | None = None
        self.target_pool, self.dependence_test = TargetPool(), DependenceTest()
        self.target_indices: frozenset[int] = frozenset()

    def compare(
        self, trace: StepTrace, output: Any, loss: Any, step: int, epoch: int, *, has_single_loss: bool
    ) -> tuple[tuple[PredictionStats, ...], Comparison | None]:
        """What the losses of a step were called with, and its own beside others; None where that is not known.

        Args:
            trace: at the step.
            output: what ``training_step`` returned.
            loss: of it.
            step: the optimizer steps that were done.
            epoch: the running one.
            has_single_loss: whether there is no other; of several none is compared.
        """
        objective = None
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            objective = self._find_objective(trace, output, loss.detach(), warns=has_single_loss)
        objectives = list_data_losses(trace) if objective is None else [objective]
        if isinstance(loss, torch.Tensor):  # excludes tensors that only a metric uses
            loss_indices = trace.origins.origin_of(loss).batch_indices
            self.target_indices = loss_indices.intersection(
                index for candidate in objectives for index in candidate.target_indices
            )
        truncated_objectives = [candidate.limit_entries() for candidate in objectives]
        prediction_stats = tuple(
            compute_prediction_stats(truncated_objective)
            for truncated_objective in truncated_objectives
            if truncated_objective is not None
        )
        truncated_objective = None if objective is None else truncated_objectives[0]
        if truncated_objective is None or not has_single_loss or not truncated_objective.has_data_targets:
            return prediction_stats, None
        with warnings.catch_warnings(action="ignore"):  # torch has said it of the user's own step
            return prediction_stats, self._compare_losses(truncated_objective, trace, step, epoch)

    def _find_objective(self, trace: StepTrace, output: Any, loss: torch.Tensor, *, warns: bool) -> Objective | None:
        """The loss of the step; says once that what needs it is left out, where nothing reproduces it."""
        if self._unknown_losses >= MAX_UNKNOWN_LOSSES:
            trace.pairs = []
        objective = find_objective(trace, output, loss, self._module, self._user_loss)
        if objective is not None:
            self.objective = objective.without_tensors()
            return objective
        self._unknown_losses += 1
        if self._user_loss is not None and self._unknown_losses == 1:
            rank_zero_warn(
                "TrainingHealth(loss=…) wants a training_step that returns {'loss', 'preds', 'target'}, with that loss "
                "of these two; here, what needs them is left out"
            )
        elif (
            self._user_loss is None and self.objective is None and self._unknown_losses == MAX_UNKNOWN_LOSSES and warns
        ):
            log_event(
                __name__,
                "TrainingHealth: no loss that it knows gives what training_step returned, so that the comparisons with "
                "a constant and with other samples' targets are left out; TrainingHealth(loss=…), and {'loss', "
                "'preds', 'target'} from training_step, bring them back",
            )
        return None

    def _compare_losses(self, objective: Objective, trace: StepTrace, step: int, epoch: int) -> Comparison | None:
        if trace.first_inputs is not None:
            self.dependence_test.add(trace.first_inputs, objective.target)
        self.target_pool.add(objective.target)
        value = float(objective.function(objective.prediction, objective.target))
        if not math.isfinite(value):
            return None
        return Comparison(
            step, epoch, value, self.target_pool.constant_loss(objective, self._user_loss), objective.permuted_loss()
        )
