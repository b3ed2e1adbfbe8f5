"""Computes statistics of the arguments of a loss."""

from __future__ import annotations

import math

import torch

from stormproof.health.observations.predictions import PredictionStats
from stormproof.health.observers.loss.objective import RELATIVE_TOLERANCE, Objective
from stormproof.health.observers.torch_losses import LOSS_INPUTS, find_loss_input
from stormproof.health.observers.tracing.provenance import Bounds

TARGET_MARGIN = 0.05
"""Harmless distance of a target from the range of the prediction, as a share of the spread of the targets."""


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
