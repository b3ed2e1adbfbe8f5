r"""What random search would have reached with the steps of a search, told from the trials of that search.

The smallest of :math:`m` values that are drawn at random from :math:`v_1 \le \dots \le v_n`, each draw from all, is
:math:`\sum_i v_i \left[ \left(1 - \tfrac{i-1}{n}\right)^m - \left(1 - \tfrac{i}{n}\right)^m \right]` on average.

References:
    Dodge, Gururangan, Card, Schwartz, Smith, Show your work: improved reporting of experimental results, 2019,
    equation 7.
"""

from __future__ import annotations

import math
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

    One that was stopped counts as if it had still gained what the complete ones did from there, on median, but never as
    better than the best of these.

    Args:
        trials: with at least one that is complete, and none without a loss.
    """
    ends = {each.number: each.losses[max(each.losses)] for each in trials if each.completed}
    return [ends[each.number] if each.completed else _expected_end(each, trials, ends) for each in trials]


def _expected_end(trial: Standing, trials: Sequence[Standing], ends: dict[int, float]) -> float:
    place = max(trial.losses)
    gains = [
        ends[other.number] - other.losses[min(fraction for fraction in other.losses if fraction >= place)]
        for other in trials
        if other.completed and max(other.losses) >= place
    ]
    gain = min(statistics.median(gains), 0.0) if gains else 0.0
    return max(trial.losses[place] + gain, min(ends.values(), default=-math.inf))
