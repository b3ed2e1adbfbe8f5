r"""Estimates the result of random search from the trials of a search.

The expected minimum of :math:`m` values drawn with replacement from :math:`v_1 \le \dots \le v_n` is
:math:`\sum_i v_i \left[ \left(1 - \tfrac{i-1}{n}\right)^m - \left(1 - \tfrac{i}{n}\right)^m \right]`.

References:
    Dodge, Gururangan, Card, Schwartz, Smith, Show your work: improved reporting of experimental results, 2019,
    equation 7.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from stormproof_train.search.rungs import TrialStatus


def expected_minimum(values: Sequence[float], draws: float) -> float:
    """Returns the expected minimum of ``draws`` random draws from ``values``.

    Args:
        values: At least one finite value.
        draws: Number of draws. Must be positive, may be fractional.

    Example:
        >>> expected_minimum([1.0, 2.0], draws=1)
        1.5
        >>> expected_minimum([1.0, 2.0], draws=2)
        1.25
    """
    count = len(values)
    # probability that all draws are above each value
    tail_probabilities = [(1 - index / count) ** draws for index in range(count + 1)]
    return sum(
        value * (tail_probabilities[index] - tail_probabilities[index + 1])
        for index, value in enumerate(sorted(values))
    )


def extrapolate_final_losses(statuses: Sequence[TrialStatus]) -> list[float]:
    """Extrapolates the final losses of trials. Infinite if a loss is not finite.

    A trial that was stopped early is assumed to improve as the complete trials did from the same point, on median. The
    improvement is a factor if all losses are positive, otherwise a difference.

    Args:
        statuses: Statuses with at least one loss each.
    """
    complete_statuses = [status for status in statuses if status.is_complete]
    is_positive = all(loss > 0 for status in statuses for loss in status.losses.values())
    return [
        status.last_loss
        if status.is_complete
        else _extrapolate_final_loss(status, complete_statuses, by_factor=is_positive)
        for status in statuses
    ]


def _extrapolate_final_loss(status: TrialStatus, complete_statuses: Sequence[TrialStatus], *, by_factor: bool) -> float:
    last_fraction = max(status.losses)
    pairs = [
        (
            complete_status.losses[min(fraction for fraction in complete_status.losses if fraction >= last_fraction)],
            complete_status.last_loss,
        )
        for complete_status in complete_statuses
        if max(complete_status.losses) >= last_fraction
    ]
    if not pairs:
        return status.last_loss
    if by_factor:
        return status.last_loss * min(statistics.median(final_loss / loss for loss, final_loss in pairs), 1.0)
    return status.last_loss + min(statistics.median(final_loss - loss for loss, final_loss in pairs), 0.0)
