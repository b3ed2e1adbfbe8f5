"""Checks that a run was healthy, independent of the diagnosis."""

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


def ran_to_end(outcome: Outcome) -> bool:
    """Returns True if training finished and all losses are finite."""
    return outcome.error is None and len(outcome.losses) > 0 and all(math.isfinite(loss) for loss in outcome.losses)


def fell_by(share: float) -> Check:
    """Returns a check that a positive loss decreased by this share."""
    return lambda outcome: ran_to_end(outcome) and outcome.mean_loss() <= (1 - share) * outcome.first_loss()


def fell_to(value: float) -> Check:
    """Returns a check that the final loss is below this value."""
    return lambda outcome: ran_to_end(outcome) and outcome.mean_loss(20) <= value


def began_above(value: float) -> Check:
    """Returns a check that the first loss is above this value."""
    return lambda outcome: outcome.first_loss(3) >= value


def began_below(value: float) -> Check:
    """Returns a check that the first loss is below this value."""
    return lambda outcome: outcome.first_loss(3) <= value


def has_plateau(steps: int, share: float = 0.1) -> Check:
    """Returns a check that the loss fell by at most a share in so many steps."""

    def check(outcome: Outcome) -> bool:
        early = math.fsum(outcome.losses[10:30]) / 20
        later = math.fsum(outcome.losses[steps - 20 : steps]) / 20
        return later >= (1 - share) * early

    return check


def held_out(outcome: Outcome) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns predictions and targets of the validation data, or of the training data without one."""
    loader: Any = outcome.fit.validation if outcome.fit.validation is not None else outcome.fit.train
    outcome.after.eval()
    preds, targets = [], []
    with torch.no_grad():
        for inputs, target in loader:
            preds.append(outcome.after(inputs))
            targets.append(target)
    return torch.cat(preds), torch.cat(targets)


def explains_variance(share: float, at_most: float = 1.0) -> Check:
    """Returns a check that the explained variance reaches this share and is at most ``at_most``."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = held_out(outcome)
        left = (preds.reshape(target.shape) - target).square().mean() / (target - target.mean(0)).square().mean()
        return share <= 1 - float(left) <= at_most

    return check


def is_accurate(share: float) -> Check:
    """Returns a check that the accuracy reaches this share."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = held_out(outcome)
        if preds.shape == target.shape:
            return float(((preds > 0) == (target > 0.5)).double().mean()) >= share
        return float((preds.argmax(1) == target).double().mean()) >= share

    return check


def below_chance_by(low: float, high: float) -> Check:
    """Returns a check that the held-out loss is ``low`` to ``high`` below that of the class frequencies."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = held_out(outcome)
        frequencies = torch.bincount(target).double() / len(target)
        generator = float(-(frequencies[frequencies > 0] * frequencies[frequencies > 0].log()).sum())
        got = float(torch.nn.functional.cross_entropy(preds, target))
        return low <= 1 - got / generator <= high

    return check


def validation_is_stable(tolerance: float = 0.05) -> Check:
    """Returns a check that the last validation loss is near the lowest and not above the first."""

    def check(outcome: Outcome) -> bool:
        validation_losses = outcome.validation
        scale = max(abs(validation_losses[0]), abs(min(validation_losses)))
        return (
            len(validation_losses) >= 2
            and validation_losses[-1] <= min(validation_losses) + tolerance * scale
            and validation_losses[-1] <= validation_losses[0] + 0.02 * scale
        )

    return check


def has_changed(name: str) -> Check:
    """Returns a check that the parameter changed."""
    return lambda outcome: not torch.equal(outcome.before[name], outcome.after.state_dict()[name])
