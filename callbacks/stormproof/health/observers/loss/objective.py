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

from stormproof.health.observers.torch_losses import torch_losses
from stormproof.health.observers.tracing.provenance import Origin
from stormproof.health.observers.tracing.step_replay import replay_without_side_effects
from stormproof.health.observers.tracing.step_trace import LossCall, PredictionTargetPair, StepTrace
from stormproof.units.transforms import plain_values

RELATIVE_TOLERANCE = 1e-5
"""Relative tolerance for matching a loss function with the value of a loss."""
LOSS_ATTRIBUTES = ("loss", "criterion", "loss_fn", "loss_func", "loss_function", "objective")
"""Common names of the loss function of a module."""
MAIN_SHARE = 0.5
"""Minimum share of the main part of a loss."""
MAX_ROLLS = 4
"""Maximum number of permutations of the targets."""
MAX_ENTRIES = 1_000_000
"""Maximum number of entries of predictions or targets to evaluate."""


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
        target_origin: Origin of the targets. Empty if unknown.
        other_terms: Other terms of the loss of the step.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    prediction: torch.Tensor
    target: torch.Tensor
    origin: Origin = field(default_factory=Origin)
    has_data_targets: bool = True
    target_origin: Origin = field(default_factory=Origin)
    other_terms: float = 0.0

    @property
    def target_indices(self) -> frozenset[int]:
        """Indices of the batch tensors that the targets were computed from. Empty if they also depend on a layer."""
        return frozenset() if self.target_origin.layers else self.target_origin.batch_indices

    @property
    def is_contrastive(self) -> bool:
        """The classes are the samples of the batch, as in InfoNCE. The best constant prediction is then uniform."""
        target = self.target
        return (
            self.name == "cross_entropy"
            and target.ndim == 1
            and not target.is_floating_point()
            and not self.target_origin.batch_indices
            and self.prediction.ndim == 2
            and self.prediction.size(1) + 1 >= self.samples
        )

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
        pair = PredictionTargetPair(plain_values(preds), plain_values(target), origin, trace.origins.origin_of(target))
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
    return Objective(name, function, {}, pair.prediction, pair.target, pair.origin, target_origin=pair.target_origin)


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
    """Returns the standard losses of the step with data targets, and all KL divergences, as in distillation."""
    return [
        _objective_from_call(call, torch.sum) for call in trace.losses if call.has_data_targets or call.name == "kl_div"
    ]


def _objective_from_call(call: LossCall, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Objective:
    """Returns the objective of a traced call of a standard loss."""
    torch_loss = partial(getattr(functional, call.name), **call.arguments)

    def function(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return reduce(torch_loss(prediction, target))

    return Objective(
        call.name, function, call.arguments, call.prediction, call.target, call.origin, call.has_data_targets,
        call.target_origin,
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
    except Exception:  # noqa: BLE001 (functions of the user may raise any error for other arguments)
        return None
    return result.detach() if isinstance(result, torch.Tensor) and result.numel() == 1 else None
