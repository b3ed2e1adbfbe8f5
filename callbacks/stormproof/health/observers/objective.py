"""Which loss a training step took of what, and what other predictions and other targets would have given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from stormproof.health.observers.step_trace import CloserLook, LossCall, Meeting
from stormproof.health.observers.torch_losses import TAKES, best_constant, candidates
from stormproof.health.record import PredictionFacts
from stormproof.health.rules.outputs import RANGES

SAME = 1e-5
"""Relative; what reproduces a returned loss this well is that loss."""
OWN = ("loss", "criterion", "loss_fn", "loss_func", "loss_function", "objective")
"""What people call the loss of a module."""
MAIN = 0.5
"""The share of a loss that is the main part of it."""
ROLLS = 4
"""Other samples' targets that each prediction is compared with."""
MOST = 1_000_000
"""Numbers of predictions, or of targets, of a batch that are looked at."""
KEPT = 20_000
"""Entries of targets that are kept for the best constant."""


@dataclass
class Objective:
    """The loss of a step, as a function of the predictions and the targets of a batch.

    Attributes:
        name: of a standard loss; empty for another.
        function: of (prediction, target).
        arguments: what else a standard loss is called with.
        prediction: (N, …), what it was called with.
        target: (N, …), what with.
        made_by: the function that gave the prediction its values; empty if that is not known.
        layer: the last layer on the way to it.
        is_given: whether the targets are data; those that a training makes by itself are compared with nothing.
        target_of: Indices of the batch tensors that the targets were computed from. Empty if unknown.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    prediction: torch.Tensor
    target: torch.Tensor
    made_by: str = ""
    layer: str = ""
    is_given: bool = True
    target_of: frozenset[int] = frozenset()

    def without_tensors(self) -> Objective:
        """The same, for other predictions and targets: those of a batch may fill much of a GPU."""
        nothing = torch.empty(0)
        return replace(self, prediction=nothing, target=nothing)

    def of_a_part(self) -> Objective | None:
        """Of as many samples of the batch as have :data:`MOST` numbers; None where that is not one, or not known.

        What is computed of a batch for comparison must not need much more memory than its training step did.
        """
        numbers = max(self.prediction.numel(), self.target.numel())
        if numbers <= MOST:
            return self
        part = self.samples * MOST // numbers
        weighs_samples = any(isinstance(each, torch.Tensor) and each.ndim > 1 for each in self.arguments.values())
        if not part or weighs_samples:
            return None
        return replace(self, prediction=self.prediction[:part], target=self.target[:part])

    @property
    def samples(self) -> int:
        """How many there are; 0 where predictions and targets are not as many."""
        both = self.prediction, self.target
        return self.target.size(0) if all(each.ndim for each in both) and both[0].size(0) == both[1].size(0) else 0

    def value_of(self, preds: Any, target: Any) -> torch.Tensor | None:
        """The loss of something else; None where that is nothing that it takes."""
        if not all(isinstance(each, torch.Tensor) for each in (preds, target)):
            return None
        return _value(self.function, preds, target)

    def of_others(self) -> float | None:
        """The mean loss with the targets of other samples of the batch."""
        rolls = range(1, min(ROLLS + 1, self.samples))
        values = [float(self.function(self.prediction, self.target.roll(roll, 0))) for roll in rolls]
        return sum(values) / len(values) if values else None


def find_objective(
    look: CloserLook, output: Any, loss: torch.Tensor, module: nn.Module, given: Callable[..., Any] | None
) -> Objective | None:
    """What reproduces the loss of a step; None if nothing does.

    Args:
        look: at the step.
        output: what ``training_step`` returned.
        loss: of it, as it was returned.
        module: whose attributes may hold the loss.
        given: the loss, if the user told; no other is looked for then.
    """
    value = float(loss)
    if given is None:
        for call in reversed(look.losses):
            reduce = reduction_of(call.value, value)
            if reduce is not None:
                return _of_call(call, reduce)
    told = output if isinstance(output, Mapping) else {}
    preds, target = (told.get(name) for name in ("preds", "target"))
    found = None
    if isinstance(preds, torch.Tensor) and isinstance(target, torch.Tensor) and preds.numel() and target.numel():
        of = look.origins.of(preds)
        target_of = look.origins.of(target).data
        met = Meeting(preds.detach(), target.detach(), of.made_by, of.layer or "", target_of)
        found = _of_own(met, value, module, given) or (_of_candidates(met, value) if given is None else None)
    if given is not None or found is not None:
        return found
    written_out = (_of_candidates(met, value) for met in reversed(look.meetings))
    return next(filter(None, written_out), None) or _main_part(look.losses, value)


def _of_own(met: Meeting, value: float, module: nn.Module, given: Callable[..., Any] | None) -> Objective | None:
    """The user's loss, or the module's, if it gives the value."""
    own = [getattr(module, name, None) for name in OWN] if given is None else [given]
    for function in own:
        if callable(function) and _reproduces(function, met.prediction, met.target, value):
            return _of_meeting("", function, met)
    return None


def _of_meeting(name: str, function: Callable[..., Any], met: Meeting) -> Objective:
    return Objective(name, function, {}, met.prediction, met.target, met.made_by, met.layer, target_of=met.target_of)


def _of_candidates(met: Meeting, value: float) -> Objective | None:
    """The standard loss that gives the value."""
    if max(met.prediction.numel(), met.target.numel()) > MOST:
        return None
    on_host = met.prediction.cpu(), met.target.cpu()  # a target that is no class of a loss's ends a process on a GPU
    for name, function in candidates().items():
        if _reproduces(function, *on_host, value):
            return _of_meeting(name, function, met)
    return None


def _main_part(calls: list[LossCall], value: float) -> Objective | None:
    """The only standard loss of given targets that was called, if it makes up most of the loss of the step."""
    given = [call for call in calls if call.is_given]
    if len(given) == 1 and given[0].value.numel() == 1 and float(given[0].value) >= MAIN * value > 0:
        return _of_call(given[0], torch.sum)
    return None


def reduction_of(values: torch.Tensor, value: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What makes ``value`` of a loss's values: the sum, the mean, or the mean of samples' sums; None if nothing does.

    Example:
        >>> reduction_of(torch.tensor([1.0, 3.0]), 2.0)(torch.tensor([5.0, 7.0]))
        tensor(6.)
    """
    kinds: list[Callable[[torch.Tensor], torch.Tensor]] = [torch.sum]
    if values.ndim:
        kinds += [torch.mean, _mean_of_sums]
    return next((each for each in kinds if _same(float(each(values)), value)), None)


def _mean_of_sums(values: torch.Tensor) -> torch.Tensor:
    return values.sum() / values.size(0)


def given_losses(look: CloserLook) -> list[Objective]:
    """The standard losses of given targets that were called, whatever the step made of them."""
    return [_of_call(call, torch.sum) for call in look.losses if call.is_given]


def facts_of(objective: Objective) -> PredictionFacts:
    """The numbers of what a loss was called with; waits for the device."""
    prediction, target = objective.prediction.float(), objective.target
    numbers = target.float()
    sums, logs = False, False
    if prediction.ndim > 1 and prediction.size(1) > 1:
        sums = bool((prediction >= 0).all()) and _is_one(prediction.sum(1))
        logs = _is_one(prediction.exp().sum(1))
    return PredictionFacts(
        loss=objective.name,
        takes=TAKES.get(objective.name, ""),
        made_by=objective.made_by,
        layer=objective.layer,
        outputs=prediction.size(1) if prediction.ndim > 1 else 1,
        low=float(prediction.min()),
        high=float(prediction.max()),
        sums_to_one=sums,
        logs_sum_to_one=logs,
        spread=_spread(prediction, numbers if TAKES.get(objective.name) == "numbers" else None),
        target_low=float(numbers.min()),
        target_high=float(numbers.max()),
        unreachable=_unreachable(objective.made_by, numbers, objective.name),
    )


class TargetPool:
    """The targets seen so far, as many as fit, and the loss of the best constant by them."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []
        self._entries = 0

    def add(self, target: torch.Tensor) -> None:
        """Takes a batch's, (N, …)."""
        if self._entries < KEPT and (not self._kept or target.shape[1:] == self._kept[0].shape[1:]):
            self._kept.append(target.cpu())
            self._entries += target.numel()

    def constant_loss(self, objective: Objective, given: Callable[..., Any] | None) -> float | None:
        """The loss of a batch for the constant that is the best for all targets seen; None if that is not known."""
        if not self._kept or not objective.samples:
            return None
        target = torch.cat(self._kept)
        own = getattr(given or objective.function, "best_constant", None)
        if own is not None:
            return float(own(target.to(objective.target.device)))
        if objective.name not in TAKES:
            return None
        classes = objective.prediction.size(1) if objective.prediction.ndim > 1 else 1
        if objective.prediction.shape != objective.target.shape and objective.target.is_floating_point():
            return None
        constant = best_constant(objective.name, objective.arguments, target, classes)
        if constant is None:
            return None
        predicted = constant.to(objective.prediction).expand_as(objective.prediction)
        return float(objective.function(predicted, objective.target))

    def state_dict(self) -> list[Any]:
        """The targets, as plain values."""
        return [[each.is_floating_point(), each.tolist()] for each in self._kept]

    def load_state_dict(self, state: list[Any]) -> None:
        """Goes on from them."""
        self._kept = [torch.tensor(values, dtype=None if numbers else torch.long) for numbers, values in state]
        self._entries = sum(each.numel() for each in self._kept)


def _is_one(sums: torch.Tensor) -> bool:
    return bool(((sums - 1).abs() < 1e-3).all())


def _of_call(call: LossCall, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Objective:
    of_samples = partial(candidates()[call.name], **call.arguments)

    def function(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return reduce(of_samples(prediction, target))

    return Objective(
        call.name, function, call.arguments, call.prediction, call.target, call.made_by, call.layer, call.is_given,
        call.target_of,
    )  # fmt: skip


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=SAME, abs_tol=1e-12)


def _reproduces(function: Callable[..., Any], preds: torch.Tensor, target: torch.Tensor, value: float) -> bool:
    made = _value(function, preds, target)
    return made is not None and _same(float(made), value)


def _value(function: Callable[..., Any], preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """What a function gives, if that is a loss; None where it takes something else."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch says of a loss that the user does not call
            made = function(preds, target)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return made.detach() if isinstance(made, torch.Tensor) and made.numel() == 1 else None


def _spread(prediction: torch.Tensor, target: torch.Tensor | None) -> float | None:
    if prediction.ndim == 0 or prediction.size(0) < 2:
        return None
    spread = float(prediction.flatten(1).std(0).mean() if prediction.ndim > 1 else prediction.std())
    size = float(prediction.square().mean().sqrt())
    if target is not None and target.ndim and target.size(0) > 1:
        size = float(target.flatten(1).std(0).mean() if target.ndim > 1 else target.std()) or size
    return spread / max(size, 1e-30)


def _unreachable(made_by: str, target: torch.Tensor, loss: str) -> float:
    low, high = RANGES.get(made_by, (None, None))
    if TAKES.get(loss) != "numbers":
        return 0.0
    beyond = torch.zeros_like(target, dtype=torch.bool)
    if low is not None:
        beyond |= target < low
    if high is not None:
        beyond |= target > high
    return float(beyond.float().mean())
