"""Compares the loss of a step with the best constant prediction and permuted targets, and describes its arguments."""

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
from stormproof.health.observers.loss.objective import RELATIVE_TOLERANCE, Objective, find_objective, list_data_losses
from stormproof.health.observers.loss.target_pool import TargetPool
from stormproof.health.observers.torch_losses import LOSS_INPUTS, OTHER_LOSS_INPUTS, find_loss_input
from stormproof.health.observers.tracing.provenance import Bounds
from stormproof.health.observers.tracing.step_trace import StepTrace

MAX_UNKNOWN_LOSSES = 5
"""Number of traced batches without a match after which the search for the loss function ends."""
TARGET_MARGIN = 0.05
"""Harmless distance of a target from the range of the prediction, as a share of the spread of the targets."""


class BaselineEvaluator:
    """Identifies the loss function of traced steps and evaluates it for other predictions and targets.

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


def compute_prediction_stats(objective: Objective) -> PredictionStats:
    """Returns statistics of the arguments of a loss. Synchronizes with the device."""
    prediction, target, bounds = objective.prediction.float(), objective.target, objective.origin.bounds
    target_values = target.float()
    sums_to_one, logs_sum_to_one = False, False
    if prediction.ndim > 1 and prediction.size(1) > 1:
        sums_to_one = bool((prediction >= 0).all()) and _are_ones(prediction.sum(1))
        logs_sum_to_one = _are_mostly_ones(prediction.exp(), dims=(1, -1) if objective.name == "kl_div" else (1,))
    return PredictionStats(
        loss=objective.name,
        loss_input=find_loss_input(objective.name, objective.arguments) or "",
        producer=objective.origin.producer,
        layer=objective.origin.layer or "",
        outputs=prediction.size(1) if prediction.ndim > 1 else 1,
        low=float(prediction.min()),
        high=float(prediction.max()),
        sums_to_one=sums_to_one,
        logs_sum_to_one=logs_sum_to_one,
        spread=_relative_spread(prediction, target_values if LOSS_INPUTS.get(objective.name) == "numbers" else None),
        target_low=float(target_values.min()),
        target_high=float(target_values.max()),
        bounded_by="" if bounds is None else bounds.function,
        lower_bound=-math.inf if bounds is None else bounds.low,
        unreachable_share=_unreachable_share(bounds, target_values, objective.name),
        are_targets_multi_hot=_are_multi_hot(objective),
    )


def _are_ones(sums: torch.Tensor) -> bool:
    """Returns whether all sums are one within 0.001."""
    return bool(((sums - 1).abs() < 1e-3).all())


def _are_mostly_ones(shares: torch.Tensor, dims: tuple[int, ...]) -> bool:
    """Returns whether at least half of the sums over one of the dimensions are one within 0.03.

    Sums of 16-bit numbers need this tolerance. Sums of padding may differ.
    """
    return any(float(((shares.sum(dim) - 1).abs() < 0.03).float().mean()) >= 0.5 for dim in dims)


def _relative_spread(prediction: torch.Tensor, target: torch.Tensor | None) -> float | None:
    """Returns the standard deviation over the samples, relative to the targets or to the root mean square."""
    if prediction.ndim == 0 or prediction.size(0) < 2:
        return None
    spread = float(prediction.flatten(1).std(0).mean() if prediction.ndim > 1 else prediction.std())
    size = float(prediction.square().mean().sqrt())
    if target is not None and target.ndim and target.size(0) > 1:
        size = float(target.flatten(1).std(0).mean() if target.ndim > 1 else target.std()) or size
    return spread / max(size, 1e-30)


def _unreachable_share(bounds: Bounds | None, target: torch.Tensor, loss: str) -> float:
    """Returns the share of target entries outside the range of the prediction."""
    if bounds is None or LOSS_INPUTS.get(loss) != "numbers":
        return 0.0
    rounding = RELATIVE_TOLERANCE * max(
        1.0, *(abs(limit) for limit in (bounds.low, bounds.high) if math.isfinite(limit))
    )
    margin = max(rounding, TARGET_MARGIN * float(target.max() - target.min()))
    return float(((target < bounds.low - margin) | (target > bounds.high + margin)).float().mean())


def _are_multi_hot(objective: Objective) -> bool:
    """Returns whether a cross-entropy receives several classes per sample as ones and zeros."""
    target = objective.target
    if objective.name != "cross_entropy" or not target.is_floating_point() or target.ndim < 2:
        return False
    return bool(((target == 0) | (target == 1)).all()) and bool((target.sum(1) > 1).any())
