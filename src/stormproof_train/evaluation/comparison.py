"""Compares two runs on the same test samples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy import stats

from stormproof_train.errors import UserError
from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.intervals import bootstrap_intervals, difference_statistic
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Comparison, McNemarRecord


@dataclass(frozen=True)
class McNemar:
    """Discordant samples of two classifiers and the p-value of McNemar's exact test.

    Attributes:
        only_first_correct: Number of samples that only the first classifier predicts correctly.
        only_second_correct: Number of samples that only the second classifier predicts correctly.
        p_value: Probability of a split at least this uneven if both classifiers are equally good.
    """

    only_first_correct: int
    only_second_correct: int
    p_value: float

    def as_dict(self) -> McNemarRecord:
        """Returns the fields as JSON-serializable values."""
        return {
            "only_first_correct": self.only_first_correct,
            "only_second_correct": self.only_second_correct,
            "p_value": self.p_value,
        }


def compare(first: Predictions, second: Predictions, names: Collection[str] | None = None) -> Comparison:
    """Compares two runs that were tested on the same samples.

    Args:
        first: Predictions of one run.
        second: Predictions of the other run.
        names: Headline metrics to compare. None compares all.

    Returns:
        The differences of the headline metrics that both have. The bootstrap is paired: it draws the same samples for
        both.

    Raises:
        UserError: If they were tested on different samples.
    """
    _check_same_samples(first, second)
    task_module = classification if first.is_classification else regression
    first_headline, second_headline = task_module.headline(first), task_module.headline(second)
    statistics = {
        name: difference_statistic(first_headline[name], second_headline[name])
        for name in first_headline
        if name in second_headline and (names is None or name in names)
    }
    intervals = bootstrap_intervals(statistics, len(first))
    differences = {name: interval.as_dict() for name, interval in intervals.items()}
    result: Comparison = {"samples": len(first), "differences": differences}
    if first.is_classification:
        result["mcnemar"] = mcnemar(first, second).as_dict()
    return result


def mcnemar(first: Predictions, second: Predictions) -> McNemar:
    """Runs McNemar's exact test of two classifiers on the same samples.

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
    """Returns True if both were tested on the same samples in the same order.

    Equal targets are not sufficient, because two splits may have the same targets.
    """
    if first.samples is None or second.samples is None or first.is_classification != second.is_classification:
        return False
    return np.array_equal(first.samples, second.samples) and np.array_equal(first.target, second.target)


def _check_same_samples(first: Predictions, second: Predictions) -> None:
    if first.samples is None or second.samples is None:
        raise UserError(
            "the predictions of one run do not identify its test samples, so the two runs cannot be compared: evaluate "
            "that run again"
        )
    if not have_same_samples(first, second):
        raise UserError(
            f"the two runs were tested on different samples ({len(first)} and {len(second)}): compare runs with the "
            "same data, split seed, scaling and precision"
        )
