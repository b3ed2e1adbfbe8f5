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

from stormproof_train.search.rungs import Standing


def expected_smallest(values: Sequence[float], draws: float) -> float:
    """The smallest of so many draws from ``values``, on average.

    Args:
        values: finite, at least one.
        draws: above 0; a part of one counts as a part of its effect.

    Example:
        >>> expected_smallest([1.0, 2.0], draws=1)
        1.5
        >>> expected_smallest([1.0, 2.0], draws=2)
        1.25
    """
    count = len(values)
    at_least = [(1 - place / count) ** draws for place in range(count + 1)]  # the chance that all are beyond so many
    return sum(value * (at_least[place] - at_least[place + 1]) for place, value in enumerate(sorted(values)))


def as_if_trained(trials: Sequence[Standing]) -> list[float]:
    """The losses that trials would have come to at their end; inf where not finite.

    One that was stopped counts as if its loss had still fallen as those of the complete ones did from there, on median:
    by a factor where all losses are positive, else by a difference.

    Args:
        trials: none without a loss.
    """
    complete = [each for each in trials if each.completed]
    positive = all(loss > 0 for each in trials for loss in each.losses.values())
    return [each.last_loss if each.completed else _expected_end(each, complete, by_factor=positive) for each in trials]


def _expected_end(trial: Standing, complete: Sequence[Standing], *, by_factor: bool) -> float:
    place = max(trial.losses)
    pairs = [
        (each.losses[min(fraction for fraction in each.losses if fraction >= place)], each.last_loss)
        for each in complete
        if max(each.losses) >= place
    ]
    if not pairs:
        return trial.last_loss
    if by_factor:
        return trial.last_loss * min(statistics.median(end / there for there, end in pairs), 1.0)
    return trial.last_loss + min(statistics.median(end - there for there, end in pairs), 0.0)
