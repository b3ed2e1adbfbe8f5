"""Defines how much quality a compression may cost, and estimates how much it has cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from stormproof_train.errors import UserError
from stormproof_train.evaluation import regression
from stormproof_train.evaluation.intervals import Interval, bootstrap_intervals, difference_statistic
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.metric_direction import Headline

_BUDGET = re.compile(r"(\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*(pp|%|)")
Z_95 = 1.959964
"""97.5% quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Budget:
    """Allowed degradation of the headline metric.

    Attributes:
        requested: Budget as the user wrote it. Empty if unlimited.
        allowed: Allowed degradation in the unit of the metric. Infinite if unlimited.
    """

    requested: str
    allowed: float

    def allows(self, degradation: Interval) -> bool:
        """Returns True if the upper end of the interval of the degradation is within the budget."""
        return self.allowed == math.inf or (degradation.high is not None and degradation.high <= self.allowed)


def read_amount(text: str | float | None) -> tuple[float, str] | None:
    """Parses the number of a budget and its unit: ``pp``, ``%`` or empty.

    Raises:
        ValueError: If the text has another form.

    Example:
        >>> read_amount("1pp"), read_amount(0.5), read_amount(None)
        ((1.0, 'pp'), (0.5, ''), None)
    """
    if text is None:
        return None
    match = _BUDGET.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"budget={text} must be 1pp (percentage points), 2% (of the original's value) or a number")
    return float(match.group(1)), match.group(2)


def read_budget(text: str | float | None, headline: Headline, original_value: float) -> Budget:
    """Parses a budget.

    Args:
        text: ``1pp`` for percentage points of accuracy, ``2%`` for a share of the original's value, or a number in the
            unit of the metric. None for no limit.
        headline: Headline metric.
        original_value: Value of the original.

    Raises:
        ValueError: If the text has another form.
        UserError: If the metric does not have this unit, or the budget includes all accuracy.

    Example:
        >>> read_budget("1pp", Headline("accuracy", True), 0.9).allowed
        0.01
        >>> read_budget("5%", Headline("rmse", False), 40.0).allowed
        2.0
    """
    amount = read_amount(text)
    if amount is None:
        return Budget("", math.inf)
    number, unit = amount
    if unit == "pp" and headline.name != "accuracy":
        raise UserError(f"budget={text}: {headline.name} has no percentage points; use {number:g}% or a number")
    if headline.name == "accuracy" and number >= {"pp": 100, "%": 100, "": 1}[unit]:
        hint = f"use {number:g}pp for percentage points" if not unit and number < 100 else "use a smaller budget"
        raise UserError(f"budget={text} allows a loss of all accuracy: {hint}")
    return Budget(str(text), number * {"pp": 0.01, "%": abs(original_value) / 100, "": 1.0}[unit])


def check_budget_is_measurable(budget: Budget, num_samples: int) -> None:
    """Checks that the number of samples suffices to verify a budget of accuracy.

    Raises:
        UserError: If the budget is too small even for an artifact with identical predictions.
    """
    min_bound = _paired_interval(0, 0, num_samples).high
    assert min_bound is not None
    if budget.allowed < min_bound:
        raise UserError(
            f"budget={budget.requested} cannot be verified on {num_samples:,} validation samples: even with identical "
            f"predictions the degradation may be {min_bound * 100:.2f} points; use at least "
            f"budget={math.ceil(min_bound * 1000) / 10:g}pp"
        )


def estimate_degradation(original: Predictions, artifact: Predictions) -> Interval:
    r"""Estimates how much worse an artifact is than the original on the same samples. Negative if it is better.

    For accuracy, let the original be the only correct one on :math:`b` of :math:`n` samples, and the artifact on
    :math:`c`. The degradation is :math:`(b - c) / n`, with the interval

    .. math:: \frac{b - c}{n + 2} \pm z \sqrt{\frac{p + q - (p - q)^2}{n + 2}}, \quad
        p = \frac{b + 1}{n + 2},\; q = \frac{c + 1}{n + 2}

    which has a positive width even if all predictions are equal. For the root mean squared error it is a bootstrap
    interval.

    Args:
        original: Predictions of the original.
        artifact: Predictions of the artifact for the same samples in the same order.

    References:
        Bonett & Price, Adjusted Wald confidence interval for a difference of binomial proportions based on paired data,
        2012, equation 8.
    """
    if original.is_classification:
        original_correct, artifact_correct = (
            predictions.classes == predictions.target for predictions in (original, artifact)
        )
        return _paired_interval(
            int((original_correct & ~artifact_correct).sum()),
            int((artifact_correct & ~original_correct).sum()),
            len(original),
        )
    original_rmse, artifact_rmse = (regression.headline(predictions)["rmse"] for predictions in (original, artifact))
    statistics = {"rmse": difference_statistic(artifact_rmse, original_rmse)}
    return bootstrap_intervals(statistics, len(original))["rmse"]


def _paired_interval(only_original_correct: int, only_artifact_correct: int, num_samples: int) -> Interval:
    p, q = ((count + 1) / (num_samples + 2) for count in (only_original_correct, only_artifact_correct))
    half_width = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (num_samples + 2))
    return Interval(
        (only_original_correct - only_artifact_correct) / num_samples, p - q - half_width, p - q + half_width
    )
