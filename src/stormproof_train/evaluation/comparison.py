"""Two runs on the same samples: is one better, or does it only seem so?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy import stats

from stormproof_train.errors import UserError
from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.intervals import bootstrap_interval
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Comparison, McNemarRecord


@dataclass(frozen=True)
class McNemar:
    """The samples that one of two classifiers alone has right, and how probable so uneven a split is by chance."""

    first_alone: int
    second_alone: int
    p_value: float

    def as_dict(self) -> McNemarRecord:
        """Returns the fields as JSON-serializable values."""
        return {"first_alone": self.first_alone, "second_alone": self.second_alone, "p_value": self.p_value}


def compare(first: Predictions, second: Predictions, names: Collection[str] | None = None) -> Comparison:
    """What is to be said of two runs that were tested on the same samples, as plain values.

    Args:
        first: of one run.
        second: of the other.
        names: of the headline numbers to compare; None for all.

    Returns:
        The differences of those headline numbers that both have. Their bootstrap draws each sample for both.

    Raises:
        UserError: if they are not of the same samples.
    """
    _check_same_samples(first, second)
    task_module = classification if first.is_classification else regression
    first_headline, second_headline = task_module.headline(first), task_module.headline(second)
    differences = {
        name: bootstrap_interval(
            lambda indices, name=name: first_headline[name](indices) - second_headline[name](indices), len(first)
        ).as_dict()
        for name in first_headline
        if name in second_headline and (names is None or name in names)
    }
    result: Comparison = {"samples": len(first), "differences": differences}
    if first.is_classification:
        result["mcnemar"] = mcnemar(first, second).as_dict()
    return result


def mcnemar(first: Predictions, second: Predictions) -> McNemar:
    """McNemar's exact test of two classifiers on the same samples.

    References:
        McNemar, Note on the sampling error of the difference between correlated proportions or percentages, 1947.
    """
    first_correct, second_correct = (predictions.classes == predictions.target for predictions in (first, second))
    discordant_counts = int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())
    p_value = (
        stats.binomtest(discordant_counts[0], sum(discordant_counts), 0.5).pvalue if sum(discordant_counts) else 1.0
    )
    return McNemar(*discordant_counts, float(p_value))


def have_same_samples(first: Predictions, second: Predictions) -> bool:
    """Whether they are, in the same order; targets alone do not tell, for two splits may have the same."""
    if first.samples is None or second.samples is None or first.is_classification != second.is_classification:
        return False
    return np.array_equal(first.samples, second.samples) and np.array_equal(first.target, second.target)


def _check_same_samples(first: Predictions, second: Predictions) -> None:
    if first.samples is None or second.samples is None:
        raise UserError("of one of the two nobody wrote down which samples it was tested on: they cannot be compared")
    if not have_same_samples(first, second):
        raise UserError(
            f"the two were tested on other samples ({len(first)} and {len(second)}): compare runs of the same data, "
            "split by the same seed, scaled alike, in the same precision"
        )
