"""Checks that the fault of a program had its effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diagnosis_bank.program import Outcome

Check = Callable[[Outcome], bool]


def all_of(*checks: Check) -> Check:
    """Returns a check that all checks pass."""
    return lambda outcome: all(check(outcome) for check in checks)


def any_of(*checks: Check) -> Check:
    """Returns a check that at least one check passes."""
    return lambda outcome: any(check(outcome) for check in checks)


def stays_above(value: float, last: int = 10) -> Check:
    """Returns a check that the final loss is above ``value``, which healthy runs undercut, or not finite."""
    return lambda outcome: not outcome.mean_loss(last) < value


def falls_by_less_than(share: float) -> Check:
    """Returns a check that the final loss is above this share of the first loss."""
    return lambda outcome: not outcome.mean_loss() < share * outcome.first_loss()


def is_non_finite(outcome: Outcome) -> bool:
    """Returns True if a loss or a weight became NaN or infinite."""
    weights = outcome.after.state_dict().values()
    return not math.isfinite(math.fsum(outcome.losses)) or not all(bool(weight.isfinite().all()) for weight in weights)


def are_unchanged(*names: str) -> Check:
    """Returns a check that all weights whose name begins with one of ``names`` are unchanged."""

    def check(outcome: Outcome) -> bool:
        after = outcome.after.state_dict()
        chosen = [name for name in outcome.before if name.startswith(names)]
        return bool(chosen) and all(torch.allclose(outcome.before[name], after[name], atol=1e-6) for name in chosen)

    return check


def predictions(outcome: Outcome, rows: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns predictions of the trained module in evaluation mode on training samples, and their targets."""
    dataset: Any = outcome.fit.train.dataset
    inputs, target = dataset.tensors[:2]
    outcome.after.eval()
    with torch.no_grad():
        return outcome.after(inputs[:rows]), target[:rows]


def accuracy_below(value: float, classes_at: int = 1) -> Check:
    """Returns a check that accuracy is below this share."""

    def check(outcome: Outcome) -> bool:
        preds, target = predictions(outcome)
        return float((preds.argmax(classes_at) == target).float().mean()) < value

    return check


def explains_less_than(value: float) -> Check:
    """Returns a check that the explained variance is below this share."""

    def check(outcome: Outcome) -> bool:
        preds, target = predictions(outcome)
        preds, target = preds.reshape(target.shape), target.float()
        rest = float(((preds - target) ** 2).mean() / ((target - target.mean(0)) ** 2).mean())
        return not 1 - rest >= value

    return check


def same_for_all(outcome: Outcome, spread: float = 1e-2) -> bool:
    """Returns True if the predictions of all samples are equal."""
    preds, _ = predictions(outcome)
    return bool(preds.reshape(len(preds), -1).std(0).max() < spread)


def targets_are_constant(outcome: Outcome) -> bool:
    """Returns True if all training targets are equal."""
    dataset: Any = outcome.fit.train.dataset
    target = dataset.tensors[1].float()
    return bool(target.max() - target.min() < 1e-6)


def validation_rises(by: float) -> Check:
    """Returns a check that validation rose by this share above its minimum while the training loss fell."""

    def check(outcome: Outcome) -> bool:
        if not outcome.validation:
            return False
        rises = outcome.validation[-1] > (1 + by) * min(outcome.validation)
        return rises and outcome.mean_loss() < 0.5 * outcome.first_loss()

    return check


def has_loss_spike(times: float) -> Check:
    """Returns a check that after twenty steps, a loss is this many times the mean of the ten before it."""

    def check(outcome: Outcome) -> bool:
        losses = outcome.losses
        return any(losses[step] > times * math.fsum(losses[step - 10 : step]) / 10 for step in range(20, len(losses)))

    return check
