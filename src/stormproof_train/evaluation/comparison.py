"""Two runs on the same samples: is one better, or does it only seem so?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from stormproof_train.errors import UserError
from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.intervals import Interval, bootstrapped
from stormproof_train.evaluation.predictions import Predictions


@dataclass(frozen=True)
class McNemar:
    """The samples that one of two classifiers alone has right, and how probable so uneven a split is by chance."""

    first_alone: int
    second_alone: int
    p_value: float


def refuse_others(one: Predictions, other: Predictions) -> None:
    """Raises UserError if the two are not of the same samples."""
    if one.target.shape != other.target.shape or not np.array_equal(one.target, other.target):
        raise UserError(
            f"the runs were tested on other samples ({len(one)} and {len(other)}): compare runs of the same data, "
            "split by the same seed"
        )


def difference(one: Predictions, other: Predictions, name: str) -> Interval:
    """By how much a headline number of the first exceeds that of the second, with a paired bootstrap interval.

    Args:
        one: of a run.
        other: of another, on the same samples.
        name: of the number.

    Raises:
        UserError: if they are not of the same samples.
    """
    refuse_others(one, other)
    kind = classification if one.is_classification else regression
    first, second = kind.headline(one)[name], kind.headline(other)[name]
    return bootstrapped(lambda drawn: first(drawn) - second(drawn), len(one))


def mcnemar(one: Predictions, other: Predictions) -> McNemar:
    """McNemar's exact test of two classifiers on the same samples.

    Raises:
        UserError: if they are not of the same samples.

    References:
        McNemar, Note on the sampling error of the difference between correlated proportions or percentages, 1947.
    """
    refuse_others(one, other)
    first, second = (each.classes == each.target for each in (one, other))
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = stats.binomtest(alone[0], sum(alone), 0.5).pvalue if sum(alone) else 1.0
    return McNemar(*alone, float(p_value))
