"""Rule for a loss that is not below the loss of the best constant prediction."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import (
    LATE_RUN_REQUIREMENT,
    constant_baseline,
    constant_comparisons,
    has_learned,
    is_clearly_better,
    is_falling,
    is_late,
    missing_comparisons,
)
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule

UNCERTAIN_SHARE = 0.05
"""Improvement over the best constant loss, as a share of it, that must be ruled out before a finding."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a loss that is not below the best constant loss late in the run."""
    if not record.losses.have_one_backward:
        return
    baseline = constant_baseline(record)
    if baseline is None:
        yield missing_comparisons(record, len(constant_comparisons(record)))
        return
    if has_learned(record) is True:
        return
    if has_learned(record) is None or not is_late(record):
        yield NotEnoughEvidence(LATE_RUN_REQUIREMENT)
        return
    is_finished = record.planned_steps is not None and record.step >= record.planned_steps
    if is_falling(record) and not (is_finished and record.predictions.is_classification):
        return  # a regression may still learn the mean of its targets
    if baseline.improvement + 2 * baseline.standard_error > UNCERTAIN_SHARE * baseline.constant_loss:
        return  # the loss may be slightly better than the constant
    yield Finding(
        Problem.NO_BETTER_THAN_CONSTANT,
        Severity.WARNING,
        "",
        0,
        record.step,
        {"loss": baseline.loss, "loss_of_the_best_constant": baseline.constant_loss},
        "Train on 10 samples only. If the loss does not fall, check the loss, the last layer and the learning rate. If "
        "it falls, check that inputs and targets belong together.",
    )


RULE = Rule(
    Problem.NO_BETTER_THAN_CONSTANT,
    check,
    explains=frozenset({Problem.PLATEAU}),
    is_obsolete=is_clearly_better,
    needs=frozenset({"losses", "predictions"}),
)
