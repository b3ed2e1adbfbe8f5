"""What a smaller network may lose, and what it has lost for sure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from stormproof_train.errors import UserError
from stormproof_train.evaluation import regression
from stormproof_train.evaluation.intervals import Interval, bootstrap_interval
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.metrics import Headline

_BUDGET = re.compile(r"(\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*(pp|%|)")
Z_95 = 1.959964
"""The standard normal distribution's 97.5% quantile."""


@dataclass(frozen=True)
class Budget:
    """What may be lost of the headline metric.

    Attributes:
        told: as the user wrote it.
        allowed: in the metric's own unit; infinite where nothing limits it.
    """

    told: str
    allowed: float

    def allows(self, degradation: Interval) -> bool:
        """Whether the loss is within it, at the worse end of its confidence interval."""
        return self.allowed == math.inf or (degradation.high is not None and degradation.high <= self.allowed)


def read_amount(text: str | float | None) -> tuple[float, str] | None:
    """The number of a budget, and its unit: ``pp``, ``%`` or none.

    Raises:
        ValueError: if it is no budget.

    Example:
        >>> read_amount("1pp"), read_amount(0.5), read_amount(None)
        ((1.0, 'pp'), (0.5, ''), None)
    """
    if text is None:
        return None
    match = _BUDGET.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"budget={text} should be 1pp (percentage points), 2% (of the original's value) or a number")
    return float(match.group(1)), match.group(2)


def read_budget(text: str | float | None, headline: Headline, original_value: float) -> Budget:
    """Reads a budget.

    Args:
        text: ``1pp`` for percentage points of accuracy, ``2%`` for a share of the original's value, a plain number in
            the metric's own unit; None for no limit.
        headline: the metric.
        original_value: what the original comes to in it.

    Raises:
        ValueError: if it is none of these.
        UserError: if the metric has no such unit, or all of it could be lost.

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
        raise UserError(f"budget={text}: {headline.name} has no percentage points; write {number:g}% or a number")
    if headline.name == "accuracy" and number >= {"pp": 100, "%": 100, "": 1}[unit]:
        hint = f"write {number:g}pp for percentage points" if not unit and number < 100 else "allow less"
        raise UserError(f"budget={text} allows all accuracy to be lost: {hint}")
    return Budget(str(text), number * {"pp": 0.01, "%": abs(original_value) / 100, "": 1.0}[unit])


def check_budget_is_measurable(budget: Budget, num_samples: int) -> None:
    """Refuses a budget of accuracy that so few samples cannot show to be kept.

    Args:
        budget: of accuracy.
        num_samples: that artifacts are compared on.

    Raises:
        UserError: if an artifact with the original's own predictions could lose more.
    """
    min_bound = _paired_interval(0, 0, num_samples).high
    assert min_bound is not None
    if budget.allowed < min_bound:
        raise UserError(
            f"budget={budget.told} cannot be shown to be kept on {num_samples:,} validation samples: where no "
            f"prediction "
            f"changes, {min_bound * 100:.2f} points may still be lost; budget={math.ceil(min_bound * 1000) / 10:g}pp "
            f"can be"
        )


def estimate_degradation(original: Predictions, artifact: Predictions) -> Interval:
    r"""By how much an artifact is worse than the original on the same samples; below 0 where it is better.

    Of accuracy, with :math:`b` samples that the original alone has right and :math:`c` that the artifact alone has, of
    n, it is :math:`(b - c) / n`, with the interval

    .. math:: \frac{b - c}{n + 2} \pm z \sqrt{\frac{p + q - (p - q)^2}{n + 2}}, \quad
        p = \frac{b + 1}{n + 2},\; q = \frac{c + 1}{n + 2}

    which has a width even where no sample differs. Of the root mean squared error it is the bootstrap's.

    Args:
        original: its predictions.
        artifact: likewise, of the same samples in the same order.

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
    return bootstrap_interval(
        lambda indices: np.asarray(artifact_rmse(indices) - original_rmse(indices)), len(original)
    )


def _paired_interval(original_alone: int, artifact_alone: int, num_samples: int) -> Interval:
    p, q = ((count + 1) / (num_samples + 2) for count in (original_alone, artifact_alone))
    half_width = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (num_samples + 2))
    return Interval((original_alone - artifact_alone) / num_samples, p - q - half_width, p - q + half_width)
