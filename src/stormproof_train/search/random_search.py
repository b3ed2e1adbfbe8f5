r"""What random search would have reached with the steps of a search, told from the trials of that search.

The smallest of :math:`m` values that are drawn at random from :math:`v_1 \le \dots \le v_n`, each draw from all, is
:math:`\sum_i v_i \left[ \left(1 - \tfrac{i-1}{n}\right)^m - \left(1 - \tfrac{i}{n}\right)^m \right]` on average.

References:
    Dodge, Gururangan, Card, Schwartz, Smith, Show your work: improved reporting of experimental results, 2019,
    equation 7.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from stormproof_train.search.rungs import TrialStatus


def expected_minimum(values: Sequence[float], draws: float) -> float:
    """The smallest of so many draws from ``values``, on average.

    Args:
        values: finite, at least one.
        draws: above 0; a part of one counts as a part of its effect.

    Example:
        >>> expected_minimum([1.0, 2.0], draws=1)
        1.5
        >>> expected_minimum([1.0, 2.0], draws=2)
        1.25
    """
    count = len(values)
    tail_probabilities = [
        (1 - index / count) ** draws for index in range(count + 1)
    ]  # the chance that all are beyond so many
    return sum(
        value * (tail_probabilities[index] - tail_probabilities[index + 1])
        for index, value in enumerate(sorted(values))
    )


def extrapolate_final_losses(statuses: Sequence[TrialStatus]) -> list[float]:
    """The losses that trials would have come to at their end; inf where not finite.

    One that was stopped counts as if its loss had still fallen as those of the complete ones did from there, on median:
    by a factor where all losses are positive, else by a difference.

    Args:
        statuses: none without a loss.
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
