"""How a run is judged without the diagnosis: whether the training really was healthy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diagnosis_bank.program import Outcome

Check = Callable[[Outcome], bool]


def all_of(*checks: Check) -> Check:
    """Each of them holds."""
    return lambda outcome: all(check(outcome) for check in checks)


def ran_to_end(outcome: Outcome) -> bool:
    """It ran to its end, and each loss was a number."""
    return outcome.error is None and len(outcome.losses) > 0 and all(math.isfinite(loss) for loss in outcome.losses)


def fell_by(share: float) -> Check:
    """Of a loss above zero, at the end this share is gone."""
    return lambda outcome: ran_to_end(outcome) and outcome.mean_loss() <= (1 - share) * outcome.first_loss()


def fell_to(value: float) -> Check:
    """The loss ends below."""
    return lambda outcome: ran_to_end(outcome) and outcome.mean_loss(20) <= value


def began_above(value: float) -> Check:
    """The loss began above."""
    return lambda outcome: outcome.first_loss(3) >= value


def began_below(value: float) -> Check:
    """The loss was small from the start."""
    return lambda outcome: outcome.first_loss(3) <= value


def has_plateau(steps: int, share: float = 0.1) -> Check:
    """For so many steps the loss had fallen by no more than a share of what it was after the first few."""

    def check(outcome: Outcome) -> bool:
        early = math.fsum(outcome.losses[10:30]) / 20
        later = math.fsum(outcome.losses[steps - 20 : steps]) / 20
        return later >= (1 - share) * early

    return check


def held_out(outcome: Outcome) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and targets of the validation, or of the training where there is none."""
    loader: Any = outcome.fit.validation if outcome.fit.validation is not None else outcome.fit.train
    outcome.after.eval()
    preds, targets = [], []
    with torch.no_grad():
        for inputs, target in loader:
            preds.append(outcome.after(inputs))
            targets.append(target)
    return torch.cat(preds), torch.cat(targets)


def explains_variance(share: float, at_most: float = 1.0) -> Check:
    """That share of the targets' variance, and no more than ``at_most``."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = held_out(outcome)
        left = (preds.reshape(target.shape) - target).square().mean() / (target - target.mean(0)).square().mean()
        return share <= 1 - float(left) <= at_most

    return check


def is_accurate(share: float) -> Check:
    """That share of the classes, by the largest score or the sign of the only one."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = held_out(outcome)
        if preds.shape == target.shape:
            return float(((preds > 0) == (target > 0.5)).double().mean()) >= share
        return float((preds.argmax(1) == target).double().mean()) >= share

    return check


def below_chance_by(low: float, high: float) -> Check:
    """The cross entropy of held-out samples is that share below the one of the classes' frequencies."""

    def check(outcome: Outcome) -> bool:
        if not ran_to_end(outcome):
            return False
        preds, target = held_out(outcome)
        frequencies = torch.bincount(target).double() / len(target)
        generator = float(-(frequencies[frequencies > 0] * frequencies[frequencies > 0].log()).sum())
        got = float(torch.nn.functional.cross_entropy(preds, target))
        return low <= 1 - got / generator <= high

    return check


def validation_calm(tolerance: float = 0.05) -> Check:
    """The last validation is near the lowest, and not above the first."""

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
    """The parameter is another than before."""
    return lambda outcome: not torch.equal(outcome.before[name], outcome.after.state_dict()[name])
