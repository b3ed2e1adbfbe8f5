"""Checks that a healthy run learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome

Check = Callable[[Outcome], bool]


def step_output(return_dict: bool, loss: torch.Tensor, preds: torch.Tensor, target: torch.Tensor) -> Any:
    """Returns the output of a training step in either form."""
    return {"loss": loss, "preds": preds, "target": target} if return_dict else loss


def ran_to_end(outcome: Outcome) -> bool:
    """Returns True if training finished and all losses and weights are finite."""
    return (
        outcome.error is None
        and len(outcome.losses) >= 20
        and all(map(math.isfinite, outcome.losses))
        and all(bool(torch.isfinite(parameter).all()) for parameter in outcome.after.parameters())
    )


def generalizes(outcome: Outcome) -> bool:
    """Returns True if the validation loss did not rise, except for noise."""
    lowest = min(outcome.validation)
    return outcome.validation[-1] <= lowest + 0.05 * abs(lowest) + 0.005 * abs(outcome.validation[0])


def loss_fell(to: float) -> Check:
    """Returns a check that the loss fell to this share of its first value."""
    return lambda outcome: (
        ran_to_end(outcome)
        and outcome.mean_loss() < to * outcome.first_loss()
        and (not outcome.validation or generalizes(outcome))
    )


def predictions(outcome: Outcome) -> tuple[Any, torch.Tensor]:
    """Returns predictions and targets of the hold-out, or of the training data without a hold-out."""
    module = outcome.after.eval()
    preds, targets = [], []
    with torch.no_grad():
        for inputs, target in outcome.fit.validation or outcome.fit.train:
            preds.append(module(inputs))
            targets.append(target)
    return torch.cat(preds), torch.cat(targets)


def is_accurate(least: float) -> Check:
    """Returns a check that accuracy reaches this share and the validation loss does not rise."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = predictions(outcome)
        right = (preds.argmax(1) == target).float().mean()
        return float(right) > least and (not outcome.validation or generalizes(outcome))

    return check


def explains_variance(least: float) -> Check:
    """Returns a check that the explained variance reaches this share and the validation loss does not rise."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = predictions(outcome)
        explained = 1 - float(F.mse_loss(preds, target) / target.var())
        return explained > least and (not outcome.validation or generalizes(outcome))

    return check


def has_changed(outcome: Outcome, name: str) -> bool:
    """Returns True if this entry of the state changed."""
    return not torch.equal(outcome.before[name], outcome.after.state_dict()[name])


def all_of(*checks: Check) -> Check:
    return lambda outcome: all(check(outcome) for check in checks)
