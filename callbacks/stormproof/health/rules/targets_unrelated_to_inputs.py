"""Rule for targets that do not depend on the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.confidence_interval import mean_and_standard_error
from stormproof.health.measures.progress import (
    MIN_COMPARISONS,
    has_learned,
    is_falling,
    missing_comparisons,
    update_ratio,
)
from stormproof.health.observations.predictions import Comparison
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports predictions that differ between samples but fit permuted targets as well as their own."""
    comparisons = [
        comparison
        for comparison in record.predictions.comparisons
        if comparison.permuted_loss is not None and comparison.step >= 10
    ]
    first_epoch_comparisons = [
        comparison for comparison in comparisons if comparison.epoch == 0
    ]  # samples of later epochs may be memorized
    comparisons = (
        first_epoch_comparisons if len(first_epoch_comparisons) >= MIN_COMPARISONS else comparisons[:MIN_COMPARISONS]
    )
    if record.data.targets_depend_on_inputs is True or has_learned(record) is True:
        return
    if len(comparisons) < MIN_COMPARISONS:
        yield missing_comparisons(record, len(comparisons))
        return
    if record.data.targets_depend_on_inputs is None:
        yield NotEnoughEvidence("more samples to test whether the targets depend on the inputs")
        return
    if record.epoch < 1 or has_learned(record) is None:
        yield NotEnoughEvidence("a finished epoch")
        return
    if is_falling(record):
        return
    mean, error = mean_and_standard_error(
        [
            comparison.permuted_loss - comparison.loss
            for comparison in comparisons[-2 * MIN_COMPARISONS :]
            if comparison.permuted_loss is not None
        ]
    )
    spreads = [
        stats.spread
        for trace in record.predictions.traces[-5:]
        for stats in trace.predictions
        if stats.spread is not None
    ]
    if mean > 2 * error or not spreads or median(spreads) < 1e-2 or update_ratio(record) < 1e-5:
        return
    yield Finding(
        Problem.TARGETS_UNRELATED_TO_INPUTS,
        Severity.WARNING,
        "target",
        0,
        record.step,
        {
            "loss": fmean(comparison.loss for comparison in comparisons),
            "loss_with_other_targets": _mean_permuted_loss(comparisons),
        },
        "Inspect some inputs together with their targets. They may have been shuffled, sorted or joined separately.",
    )


def _mean_permuted_loss(comparisons: Sequence[Comparison]) -> float:
    """Returns the mean loss with permuted targets."""
    return fmean(comparison.permuted_loss for comparison in comparisons if comparison.permuted_loss is not None)


RULE = Rule(
    Problem.TARGETS_UNRELATED_TO_INPUTS,
    check,
    explains=frozenset({Problem.NO_BETTER_THAN_CONSTANT, Problem.OVERFITTING, Problem.PLATEAU}),
    needs=frozenset({"data", "gradients", "losses", "predictions"}),
)
