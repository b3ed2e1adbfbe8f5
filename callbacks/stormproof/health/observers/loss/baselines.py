"""Compares the loss of a step with the best constant prediction and with permuted targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from stormproof.event_log import log_event
from stormproof.health.observations.predictions import Comparison, PredictionStats
from stormproof.health.observers.loss.input_target_dependence import DependenceTest
from stormproof.health.observers.loss.objective import Objective, find_objective, list_data_losses
from stormproof.health.observers.loss.prediction_stats import compute_prediction_stats
from stormproof.health.observers.loss.target_pool import TargetPool
from stormproof.health.observers.torch_losses import OTHER_LOSS_INPUTS
from stormproof.health.observers.tracing.step_trace import StepTrace

MAX_UNKNOWN_LOSSES = 5
"""Number of traced batches without a match after which the search for the loss function ends."""


class BaselineEvaluator:
    """Identifies the loss function of traced steps and evaluates it for other predictions and targets.

    Args:
        module: Module to trace.
        user_loss: Loss function given by the user, if any.

    Attributes:
        objective: Last identified loss, without its tensors.
        target_pool: Targets so far.
        dependence_test: Sample of inputs with their targets.
        target_indices: Indices of the batch tensors that are targets of the loss. Empty until known.
    """

    def __init__(self, module: nn.Module, user_loss: Callable[..., Any] | None) -> None:
        self._module, self._user_loss = module, user_loss
        self._unknown_losses = 0  # traced batches without a match
        self.objective: Objective | None = None
        self.target_pool, self.dependence_test = TargetPool(), DependenceTest()
        self.target_indices: frozenset[int] = frozenset()

    @property
    def computes_targets(self) -> bool:
        """Returns whether the step computes the targets of the loss from the batch."""
        objective = self.objective
        return objective is not None and bool(objective.target_indices) and bool(objective.target_origin.producer)

    def compare(
        self, trace: StepTrace, output: Any, loss: Any, step: int, epoch: int, *, has_single_loss: bool
    ) -> tuple[tuple[PredictionStats, ...], Comparison | None]:
        """Returns statistics of the predictions and a comparison of the loss.

        Args:
            trace: Trace of the step.
            output: Return value of ``training_step``.
            loss: Loss in it.
            step: Number of optimizer steps before the batch.
            epoch: Current epoch.
            has_single_loss: Whether each batch has at most one backward pass. Otherwise there is no comparison.

        Returns:
            Statistics for each loss in the step, and the comparison or None if the loss is unknown.
        """
        objective = None
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            objective = self._find_objective(trace, output, loss.detach(), warns=has_single_loss)
        objectives = [] if objective is None else [objective]
        if objective is None or not objective.name:  # a custom loss may call standard losses
            objectives += list_data_losses(trace)
        if isinstance(loss, torch.Tensor):  # excludes tensors that only a metric uses
            loss_indices = trace.origins.origin_of(loss).batch_indices
            self.target_indices = loss_indices.intersection(
                index
                for candidate in objectives
                if candidate.name not in OTHER_LOSS_INPUTS  # all targets of a loss of pairs may be 1
                for index in candidate.target_indices
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
        no_side_effects = truncated_objective.undo_side_effects(self._module)
        with no_side_effects, warnings.catch_warnings(action="ignore"):  # the user's own step has shown them
            comparison = self._compare_losses(truncated_objective, step, epoch)
        targets = objectives[0].target
        has_target_per_row = targets.ndim > 0 and len(targets) >= trace.first_input_rows  # unlike the nodes of graphs
        if trace.first_inputs is not None and truncated_objective.target_indices and has_target_per_row:
            self.dependence_test.add(trace.first_inputs, truncated_objective.target)
        return prediction_stats, comparison

    def _find_objective(self, trace: StepTrace, output: Any, loss: torch.Tensor, *, warns: bool) -> Objective | None:
        """Identifies the loss function of the step. Reports once if no candidate reproduces the loss."""
        if self._unknown_losses >= MAX_UNKNOWN_LOSSES:
            trace.pairs = []
        objective = find_objective(trace, output, loss, self._module, self._user_loss)
        if objective is not None:
            self.objective = objective.without_tensors()
            return objective
        self._unknown_losses += 1
        if self._user_loss is not None and self._unknown_losses == 1:
            rank_zero_warn(
                "The loss returned by training_step is not TrainingHealth(loss=…) of the returned preds and target. "
                "Return {'loss', 'preds', 'target'}. Until then, rules that compare predictions are disabled."
            )
        elif (
            self._user_loss is None and self.objective is None and self._unknown_losses == MAX_UNKNOWN_LOSSES and warns
        ):
            log_event(
                __name__,
                "TrainingHealth cannot identify the loss function, so rules that compare predictions are disabled. Use "
                "TrainingHealth(loss=…) and return {'loss', 'preds', 'target'} from training_step.",
            )
        return None

    def _compare_losses(self, objective: Objective, step: int, epoch: int) -> Comparison | None:
        """Evaluates the loss for other predictions and targets. Returns None if the loss is not finite."""
        self.target_pool.add(objective.target)
        value = float(objective.function(objective.prediction, objective.target))
        if not math.isfinite(value):
            return None
        constant_loss = self.target_pool.constant_loss(objective, self._user_loss)
        return Comparison(step, epoch, value, constant_loss, objective.permuted_loss(), objective.other_terms)
