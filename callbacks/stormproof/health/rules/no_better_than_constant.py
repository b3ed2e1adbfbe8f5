"""Rule for a loss that is not below the loss of the best constant prediction."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import (
    LATE_RUN_REQUIREMENT,
    ConstantBaseline,
    constant_baseline,
    constant_comparisons,
    has_learned,
    has_other_terms,
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
    makes_progress, has_terms = has_learned(record), has_other_terms(record)
    if makes_progress is True:
        return
    is_finished = record.planned_steps is not None and record.step >= record.planned_steps
    if makes_progress is None or not is_late(record):
        yield NotEnoughEvidence(LATE_RUN_REQUIREMENT)
    elif has_terms and not is_finished and record.planned_steps is not None:
        yield NotEnoughEvidence("the end of the run, because the loss has other terms")
    elif not _may_improve(
        record, baseline, ignores_fall=is_finished and not has_terms and record.predictions.is_classification
    ):
        yield _make_finding(record, baseline)


def _may_improve(record: Record, baseline: ConstantBaseline, *, ignores_fall: bool) -> bool:
    """Returns whether the loss may be, or become, better than the constant loss.

    Args:
        record: Record of the run.
        baseline: Comparison with the constant.
        ignores_fall: Whether to ignore that the training loss still falls. A regression may still learn the mean of its
            targets.
    """
    may_be_better = baseline.improvement + 2 * baseline.standard_error > UNCERTAIN_SHARE * baseline.constant_loss
    falls = is_falling(record) and not ignores_fall
    passes = record.losses.validations[-2:]  # a weak signal is significant in the whole validation data first
    is_validation_better = (
        len(passes) == 2 and passes[1].loss < baseline.constant_loss and passes[0].is_above(passes[1])
    )
    return may_be_better or falls or is_validation_better


def _make_finding(record: Record, baseline: ConstantBaseline) -> Finding:
    return Finding(
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
