"""Identifies the loss function of a step and evaluates it for other predictions and targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stormproof.health.observations.predictions import PredictionStats
from stormproof.health.observers.provenance import Bounds, Origin
from stormproof.health.observers.step_replay import replay_without_side_effects
from stormproof.health.observers.step_trace import LossCall, PredictionTargetPair, StepTrace
from stormproof.health.observers.torch_losses import LOSS_INPUTS, best_constant, find_loss_input, torch_losses

RELATIVE_TOLERANCE = 1e-5
"""Relative tolerance for matching a loss function with the value of a loss."""
LOSS_ATTRIBUTES = ("loss", "criterion", "loss_fn", "loss_func", "loss_function", "objective")
"""Common names of the loss function of a module."""
MAIN_SHARE = 0.5
"""Minimum share of the main part of a loss."""
TARGET_MARGIN = 0.05
"""Distance of a target from the range of the prediction, as a share of the spread of the targets, that is harmless."""
MAX_ROLLS = 4
"""Maximum number of permutations of the targets."""
MAX_ENTRIES = 1_000_000
"""Maximum number of entries of predictions or targets to evaluate."""
MAX_POOL_ENTRIES = 20_000
"""Maximum number of entries of targets to keep for the best constant."""


@dataclass
class Objective:
    """The loss of a step, as a function of the predictions and the targets of a batch.

    Attributes:
        name: Name of a standard loss. Empty for other losses.
        function: Function of (prediction, target).
        arguments: Other arguments of a standard loss.
        prediction: Predictions of shape (N, …).
        target: Targets of shape (N, …).
        origin: Origin of the prediction. Empty if unknown.
        has_data_targets: Whether the targets are data. Computed targets are not compared.
        target_indices: Indices of the batch tensors that the targets were computed from. Empty if unknown.
        target_producer: Function that computed the values of the targets. Empty for values from the batch.
        other_terms: Other terms of the loss of the step.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    prediction: torch.Tensor
    target: torch.Tensor
    origin: Origin = field(default_factory=Origin)
    has_data_targets: bool = True
    target_indices: frozenset[int] = frozenset()
    target_producer: str = ""
    other_terms: float = 0.0

    def without_tensors(self) -> Objective:
        """Returns a copy without predictions and targets, which may fill much of a GPU."""
        empty_tensor = torch.empty(0)
        return replace(self, prediction=empty_tensor, target=empty_tensor)

    def limit_entries(self) -> Objective | None:
        """Returns the objective of the first samples of the batch, up to :data:`MAX_ENTRIES` numbers.

        Comparisons must not need much more memory than the training step. None if not even one sample fits, or if the
        number of samples is not known.
        """
        entries = max(self.prediction.numel(), self.target.numel())
        if entries <= MAX_ENTRIES:
            return self
        sample_count = self.samples * MAX_ENTRIES // entries
        weighs_samples = any(
            isinstance(argument, torch.Tensor) and argument.ndim > 1 for argument in self.arguments.values()
        )
        if not sample_count or weighs_samples:
            return None
        return replace(self, prediction=self.prediction[:sample_count], target=self.target[:sample_count])

    def undo_side_effects(self, module: nn.Module) -> AbstractContextManager[None]:
        """Returns a context that undoes side effects of the function on a module, which standard losses do not have."""
        return nullcontext() if self.name else replay_without_side_effects(module)

    @property
    def samples(self) -> int:
        """Number of samples. 0 if predictions and targets differ in it."""
        tensors = self.prediction, self.target
        return (
            self.target.size(0)
            if all(tensor.ndim for tensor in tensors) and tensors[0].size(0) == tensors[1].size(0)
            else 0
        )

    def compute(self, preds: Any, target: Any) -> torch.Tensor | None:
        """Returns the loss of other predictions and targets. None if they do not fit."""
        if not all(isinstance(argument, torch.Tensor) for argument in (preds, target)):
            return None
        return _evaluate_loss(self.function, preds, target)

    def permuted_loss(self) -> float | None:
        """Returns the mean loss with the targets of other samples of the batch."""
        rolls = range(1, min(MAX_ROLLS + 1, self.samples))
        values = [float(self.function(self.prediction, self.target.roll(roll, 0))) for roll in rolls]
        return sum(values) / len(values) if values else None


def find_objective(
    trace: StepTrace, output: Any, loss: torch.Tensor, module: nn.Module, user_loss: Callable[..., Any] | None
) -> Objective | None:
    """Finds the function that reproduces the loss of a step.

    Args:
        trace: Trace of the step.
        output: Return value of ``training_step``.
        loss: Loss in it.
        module: Module whose attributes may contain the loss function.
        user_loss: Loss function given by the user, if any. It is then the only candidate.

    Returns:
        The objective, or None if no candidate reproduces the loss.
    """
    value = float(loss)
    if user_loss is None:
        for call in reversed(trace.losses):
            reduce = find_reduction(call.value, value) if call.is_comparable else None
            if reduce is not None:
                return _objective_from_call(call, reduce)
    outputs = output if isinstance(output, Mapping) else {}
    preds, target = (outputs.get(name) for name in ("preds", "target"))
    objective = None
    if isinstance(preds, torch.Tensor) and isinstance(target, torch.Tensor) and preds.numel() and target.numel():
        origin = trace.origins.origin_of(preds)
        target_origin = trace.origins.origin_of(target)
        pair = PredictionTargetPair(
            preds.detach(), target.detach(), origin, target_origin.batch_indices, target_origin.producer
        )
        if user_loss is None:  # prefer standard losses, whose best constant is known
            objective = _match_torch_loss(pair, value)
        objective = objective or _match_user_loss(pair, value, module, user_loss)
    if user_loss is not None or objective is not None:
        return objective
    pair_objectives = (_match_torch_loss(pair, value) for pair in reversed(trace.pairs))
    return next(filter(None, pair_objectives), None) or _find_main_loss(trace.losses, value)


def _match_user_loss(
    pair: PredictionTargetPair, value: float, module: nn.Module, user_loss: Callable[..., Any] | None
) -> Objective | None:
    """Returns the loss of the user or of the module if it reproduces the value."""
    functions = [getattr(module, name, None) for name in LOSS_ATTRIBUTES] if user_loss is None else [user_loss]
    for function in filter(callable, functions):
        with replay_without_side_effects(module):
            is_match = _reproduces_value(function, pair.prediction, pair.target, value)
        if is_match:
            return _objective_from_pair("", function, pair)
    return None


def _objective_from_pair(name: str, function: Callable[..., Any], pair: PredictionTargetPair) -> Objective:
    """Returns the objective of a loss function of a traced pair."""
    return Objective(
        name,
        function,
        {},
        pair.prediction,
        pair.target,
        pair.origin,
        target_indices=pair.target_indices,
        target_producer=pair.target_producer,
    )


def _match_torch_loss(pair: PredictionTargetPair, value: float) -> Objective | None:
    """Returns the standard loss that reproduces the value."""
    if max(pair.prediction.numel(), pair.target.numel()) > MAX_ENTRIES:
        return None
    cpu_tensors = pair.prediction.cpu(), pair.target.cpu()  # on a GPU an invalid class index kills the process
    for name, function in torch_losses().items():
        if _reproduces_value(function, *cpu_tensors, value):
            return _objective_from_pair(name, function, pair)
    return None


def _find_main_loss(calls: list[LossCall], value: float) -> Objective | None:
    """Returns the only standard loss with data targets if it is at least half of the loss of the step."""
    data_calls = [call for call in calls if call.has_data_targets and call.is_comparable]
    if (
        len(data_calls) == 1
        and data_calls[0].value.numel() == 1
        and float(data_calls[0].value) >= MAIN_SHARE * value > 0
    ):
        objective = _objective_from_call(data_calls[0], torch.sum)
        return replace(objective, other_terms=value - float(data_calls[0].value))
    return None


def find_reduction(values: torch.Tensor, value: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Returns the reduction from ``values`` to ``value``: the sum, the mean, or the mean of the sums of samples.

    None if no reduction matches.

    Example:
        >>> find_reduction(torch.tensor([1.0, 3.0]), 2.0)(torch.tensor([5.0, 7.0]))
        tensor(6.)
    """
    reductions: list[Callable[[torch.Tensor], torch.Tensor]] = [torch.sum]
    if values.ndim:
        reductions += [torch.mean, _mean_of_sums]
    return next((reduction for reduction in reductions if _is_close(float(reduction(values)), value)), None)


def _mean_of_sums(values: torch.Tensor) -> torch.Tensor:
    """Returns the mean over samples of the sum of their losses."""
    return values.sum() / values.size(0)


def list_data_losses(trace: StepTrace) -> list[Objective]:
    """Returns all standard losses with data targets in the step."""
    return [_objective_from_call(call, torch.sum) for call in trace.losses if call.has_data_targets]


def compute_prediction_stats(objective: Objective) -> PredictionStats:
    """Returns statistics of the arguments of a loss. Synchronizes with the device."""
    prediction, target = objective.prediction.float(), objective.target
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
        bounded_by="" if objective.origin.bounds is None else objective.origin.bounds.function,
        unreachable_share=_unreachable_share(objective.origin.bounds, target_values, objective.name),
        are_targets_multi_hot=_are_multi_hot(objective),
    )


class TargetPool:
    """Collects targets and evaluates the best constant prediction for them."""

    def __init__(self) -> None:
        self._targets: list[torch.Tensor] = []
        self._entries = 0

    @property
    def identical_samples(self) -> int | None:
        """Number of samples with identical targets. None if two targets differ."""
        if not self._targets:
            return 0
        target = torch.cat(self._targets)
        return len(target) if bool((target == target[0]).all()) else None

    def add(self, target: torch.Tensor) -> None:
        """Adds the targets of a batch, of shape (N, …)."""
        if (
            target.ndim
            and self._entries < MAX_POOL_ENTRIES
            and (not self._targets or target.shape[1:] == self._targets[0].shape[1:])
        ):
            self._targets.append(target.cpu())
            self._entries += target.numel()

    def constant_loss(self, objective: Objective, user_loss: Callable[..., Any] | None) -> float | None:
        """Returns the loss of a batch for the best constant prediction of all targets. None if unknown."""
        if not self._targets or not objective.samples or (self.identical_samples or 0) > 1:
            return None  # identical targets, as in pairwise ranking, make a constant prediction perfect
        target = torch.cat(self._targets)
        user_constant_loss = getattr(user_loss or objective.function, "best_constant", None)
        if user_constant_loss is not None:
            return float(user_constant_loss(target.to(objective.target.device)))
        if objective.name not in LOSS_INPUTS:
            return None
        classes = objective.prediction.size(1) if objective.prediction.ndim > 1 else 1
        if objective.prediction.shape != objective.target.shape and objective.target.is_floating_point():
            return None
        constant = best_constant(objective.name, objective.arguments, target, classes)
        if constant is None:
            return None
        constant_prediction = constant.to(objective.prediction).expand_as(objective.prediction)
        return float(objective.function(constant_prediction, objective.target))

    def state_dict(self) -> list[Any]:
        """Returns the targets as plain values."""
        return [[target.is_floating_point(), target.tolist()] for target in self._targets]

    def load_state_dict(self, state: list[Any]) -> None:
        """Restores the targets."""
        self._targets = [
            torch.tensor(values, dtype=None if is_floating else torch.long) for is_floating, values in state
        ]
        self._entries = sum(target.numel() for target in self._targets)


def _are_ones(sums: torch.Tensor) -> bool:
    """Returns whether all sums are one within 0.001."""
    return bool(((sums - 1).abs() < 1e-3).all())


def _are_mostly_ones(shares: torch.Tensor, dims: tuple[int, ...]) -> bool:
    """Returns whether most sums over one of the dimensions are one within 0.03.

    The tolerance is that of 16-bit numbers. Padding may have other sums.
    """
    return any(float(((shares.sum(dim) - 1).abs() < 0.03).float().mean()) >= 0.5 for dim in dims)


def _objective_from_call(call: LossCall, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Objective:
    """Returns the objective of a traced call of a standard loss."""
    torch_loss = partial(getattr(functional, call.name), **call.arguments)

    def function(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return reduce(torch_loss(prediction, target))

    return Objective(
        call.name, function, call.arguments, call.prediction, call.target, call.origin, call.has_data_targets,
        call.target_indices, call.target_producer,
    )  # fmt: skip


def _is_close(first: float, second: float) -> bool:
    """Returns whether two losses are equal within the tolerance."""
    return math.isclose(first, second, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12)


def _reproduces_value(function: Callable[..., Any], preds: torch.Tensor, target: torch.Tensor, value: float) -> bool:
    """Returns whether a loss function returns the value."""
    result = _evaluate_loss(function, preds, target)
    return result is not None and _is_close(float(result), value)


def _evaluate_loss(function: Callable[..., Any], preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """Returns the value of a loss function. None if it does not accept the arguments or does not return a scalar."""
    try:
        with warnings.catch_warnings(action="ignore"):  # from losses that the user does not call
            result = function(preds, target)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return result.detach() if isinstance(result, torch.Tensor) and result.numel() == 1 else None


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
