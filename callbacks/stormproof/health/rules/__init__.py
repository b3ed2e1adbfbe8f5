"""Diagnosis rules. Each rule derives the findings of one problem from the record of a run.

To add a rule, write a function from a :class:`~stormproof.health.record.Record` to findings and add it to ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stormproof.finding import Finding, Problem
from stormproof.health.record import Record
from stormproof.health.rules import (
    autograd_graph,
    data,
    dead_units,
    gradient_flow,
    loss_spike,
    non_finite,
    optimizers,
    outputs,
    overfitting,
    plateau,
    progress,
    stragglers,
)

SYMPTOMS = frozenset({
    Problem.DEAD_UNITS, Problem.SATURATED_UNITS, Problem.VANISHING_GRADIENTS, Problem.WEIGHTS_UNCHANGED,
    Problem.OUTPUT_IGNORES_INPUT, Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT,
    Problem.LOSS_SPIKE, Problem.PLATEAU,
})  # fmt: skip
"""Problems that almost any other problem can cause."""
_LEARNING_RATES = frozenset({Problem.LEARNING_RATE_TOO_LOW, Problem.LEARNING_RATE_TOO_HIGH})
_NUMERICAL = SYMPTOMS | _LEARNING_RATES | {Problem.NON_FINITE, Problem.EXPLODING_GRADIENTS, Problem.INPUT_BADLY_SCALED}
_NO_UPDATE = SYMPTOMS | _LEARNING_RATES
_WEAK_GRADIENT = SYMPTOMS | {Problem.LEARNING_RATE_TOO_LOW}
_NOTHING: frozenset[Problem] = frozenset()


@dataclass(frozen=True)
class Rule:
    """A diagnosis rule.

    Attributes:
        problem: Problem of its findings.
        check: Yields findings for a record.
        explains: Problems that this one can cause. Only problems of later rules count.
    """

    problem: Problem
    check: Callable[[Record], Iterator[Finding]]
    explains: frozenset[Problem] = SYMPTOMS


RULES = (
    Rule(Problem.NON_FINITE_DATA, non_finite.check_non_finite_data, _NUMERICAL),
    Rule(Problem.DEGENERATE_TARGETS, data.check_degenerate_targets, _NUMERICAL),
    Rule(Problem.BROADCAST_MISMATCH, outputs.check_broadcast_mismatch, _NUMERICAL),
    Rule(Problem.LOSS_INPUT_MISMATCH, outputs.check_loss_input_mismatch, _NUMERICAL),
    Rule(Problem.UNREACHABLE_TARGETS, outputs.check_unreachable_targets, _NUMERICAL),
    Rule(Problem.LEARNING_RATE_ZERO, optimizers.check_zero_learning_rate, _NO_UPDATE),
    Rule(Problem.NOT_IN_OPTIMIZER, optimizers.check_not_in_optimizer, _NO_UPDATE),
    Rule(Problem.IN_TWO_OPTIMIZERS, optimizers.check_in_two_optimizers),
    Rule(Problem.NO_GRADIENT, autograd_graph.check_no_gradient, _NO_UPDATE),
    Rule(Problem.GRADIENTS_NOT_CLEARED, autograd_graph.check_zero_grad, _NUMERICAL),
    Rule(Problem.REPLICAS_DIVERGED, data.check_replicas, _NOTHING),
    Rule(Problem.INPUT_BADLY_SCALED, data.check_input_scale, _NUMERICAL),
    Rule(Problem.LEARNING_RATE_TOO_HIGH, optimizers.check_high_learning_rate, _NUMERICAL),
    Rule(Problem.EXPLODING_GRADIENTS, gradient_flow.check_exploding_gradients, _NUMERICAL),
    Rule(Problem.NON_FINITE, non_finite.check_non_finite),
    Rule(Problem.BATCH_NORM_STATISTICS_LAG, dead_units.check_batch_norm_statistics, frozenset({Problem.OVERFITTING})),
    Rule(Problem.DEAD_UNITS, dead_units.check_dead_units, _WEAK_GRADIENT),
    Rule(Problem.SATURATED_UNITS, dead_units.check_saturated_units, _WEAK_GRADIENT),
    Rule(Problem.VANISHING_GRADIENTS, gradient_flow.check_vanishing_gradients, _WEAK_GRADIENT),
    Rule(Problem.LEARNING_RATE_TOO_LOW, optimizers.check_low_learning_rate),
    Rule(
        Problem.LOSS_SPIKE,
        loss_spike.check_loss_spike,
        frozenset({Problem.NO_BETTER_THAN_CONSTANT, Problem.TARGETS_UNRELATED_TO_INPUTS}),
    ),
    Rule(Problem.WEIGHTS_UNCHANGED, optimizers.check_unchanged_weights),
    Rule(Problem.OUTPUT_IGNORES_INPUT, outputs.check_constant_output),
    Rule(Problem.TARGETS_UNRELATED_TO_INPUTS, progress.check_unrelated_targets, SYMPTOMS | {Problem.OVERFITTING}),
    Rule(Problem.NO_BETTER_THAN_CONSTANT, progress.check_no_better_than_constant),
    Rule(Problem.OVERFITTING, overfitting.check_overfitting, _NOTHING),
    Rule(Problem.PLATEAU, plateau.check_plateau),
    Rule(Problem.DATA_STARVATION, data.check_data_starvation, _NOTHING),
    Rule(Problem.SLOW_RANK, stragglers.check_slow_rank, _NOTHING),
)
"""All rules, causes before symptoms. A problem can only explain problems of later rules."""
