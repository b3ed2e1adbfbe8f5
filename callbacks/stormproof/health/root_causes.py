"""All rules, and which of their findings explain which others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from stormproof.finding import Finding, Problem, Severity
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

RULES: tuple[Callable[[Record], Iterator[Finding]], ...] = (
    non_finite.find_non_finite,
    data.find_degenerate_targets,
    outputs.find_stretched_shapes,
    outputs.find_loss_input_mismatch,
    outputs.find_unreachable_targets,
    optimizers.find_zero_learning_rate,
    optimizers.find_not_in_optimizer,
    optimizers.find_in_two_optimizers,
    autograd_graph.find_no_gradient,
    autograd_graph.find_kept_gradients,
    data.find_replicas_that_differ,
    data.find_badly_scaled_input,
    optimizers.find_too_high_a_learning_rate,
    gradient_flow.find_exploding,
    dead_units.find_lagging_statistics,
    dead_units.find_dead_units,
    dead_units.find_saturated_units,
    gradient_flow.find_vanishing,
    optimizers.find_too_low_a_learning_rate,
    optimizers.find_unchanged_weights,
    outputs.find_output_that_ignores_input,
    progress.find_unrelated_targets,
    progress.find_no_better_than_constant,
    overfitting.find_overfitting,
    loss_spike.find_spike,
    plateau.find_plateau,
    data.find_starvation,
    stragglers.find_slow_rank,
)
"""From causes to symptoms."""

_P = Problem
SYMPTOMS = frozenset({
    _P.DEAD_UNITS, _P.SATURATED_UNITS, _P.VANISHING_GRADIENTS, _P.WEIGHTS_UNCHANGED, _P.OUTPUT_IGNORES_INPUT,
    _P.TARGETS_UNRELATED_TO_INPUTS, _P.NO_BETTER_THAN_CONSTANT, _P.LOSS_SPIKE, _P.PLATEAU,
})  # fmt: skip
"""What any cause that comes before it may have brought about."""
ORDER = {problem: number for number, problem in enumerate((
    _P.NON_FINITE_DATA, _P.DEGENERATE_TARGETS, _P.SHAPES_BROADCAST, _P.LOSS_INPUT_MISMATCH,
    _P.HEAD_CANNOT_REACH_TARGETS, _P.LEARNING_RATE_ZERO, _P.NOT_IN_OPTIMIZER, _P.IN_TWO_OPTIMIZERS, _P.NO_GRADIENT,
    _P.GRADIENTS_NOT_CLEARED, _P.REPLICAS_DIVERGED, _P.INPUT_BADLY_SCALED, _P.LEARNING_RATE_TOO_HIGH,
    _P.EXPLODING_GRADIENTS, _P.NON_FINITE, _P.BATCH_NORM_STATISTICS_LAG, _P.DEAD_UNITS, _P.SATURATED_UNITS,
    _P.VANISHING_GRADIENTS, _P.LEARNING_RATE_TOO_LOW, _P.LOSS_SPIKE, _P.WEIGHTS_UNCHANGED, _P.OUTPUT_IGNORES_INPUT,
    _P.TARGETS_UNRELATED_TO_INPUTS,
    _P.NO_BETTER_THAN_CONSTANT, _P.OVERFITTING, _P.PLATEAU, _P.DATA_STARVATION, _P.SLOW_RANK,
))}  # fmt: skip
"""Of two findings, which is the cause of the other, if either is."""
EXPLAINS: dict[Problem, frozenset[Problem]] = {
    **dict.fromkeys(ORDER, SYMPTOMS),
    **dict.fromkeys(
        (_P.NON_FINITE_DATA, _P.INPUT_BADLY_SCALED, _P.LEARNING_RATE_TOO_HIGH, _P.GRADIENTS_NOT_CLEARED,
         _P.EXPLODING_GRADIENTS, _P.SHAPES_BROADCAST, _P.LOSS_INPUT_MISMATCH, _P.HEAD_CANNOT_REACH_TARGETS,
         _P.DEGENERATE_TARGETS),
        SYMPTOMS | {_P.NON_FINITE, _P.EXPLODING_GRADIENTS, _P.LEARNING_RATE_TOO_HIGH, _P.LEARNING_RATE_TOO_LOW,
                    _P.INPUT_BADLY_SCALED},
    ),
    **dict.fromkeys((_P.LEARNING_RATE_ZERO, _P.NOT_IN_OPTIMIZER, _P.NO_GRADIENT),
                    SYMPTOMS | {_P.LEARNING_RATE_TOO_LOW, _P.LEARNING_RATE_TOO_HIGH}),
    **dict.fromkeys(
        (_P.VANISHING_GRADIENTS, _P.DEAD_UNITS, _P.SATURATED_UNITS), SYMPTOMS | {_P.LEARNING_RATE_TOO_LOW}
    ),
    _P.LOSS_SPIKE: frozenset({_P.NO_BETTER_THAN_CONSTANT, _P.TARGETS_UNRELATED_TO_INPUTS}),
    _P.TARGETS_UNRELATED_TO_INPUTS: SYMPTOMS | {_P.OVERFITTING},
    _P.BATCH_NORM_STATISTICS_LAG: frozenset({_P.OVERFITTING}),
    _P.OVERFITTING: frozenset(),
    _P.DATA_STARVATION: frozenset(),
    _P.SLOW_RANK: frozenset(),
    _P.REPLICAS_DIVERGED: frozenset(),
}  # fmt: skip


def find(record: Record) -> list[Finding]:
    """All that the rules find."""
    return [finding for rule in RULES for finding in rule(record)]


def root_causes(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a cause, each with what it explains; causes come first, what may be meant so last."""
    ordered = sorted(findings, key=lambda each: (each.severity == Severity.INFO, ORDER[each.problem]))
    roots: list[Finding] = []
    for finding in ordered:
        cause = next((number for number, each in enumerate(roots) if _explains(each, finding)), None)
        if cause is None:
            roots.append(finding)
        else:
            explained = dict.fromkeys((*roots[cause].consequences, _named(finding), *finding.consequences))
            roots[cause] = replace(roots[cause], consequences=tuple(explained))
    return roots


def _explains(cause: Finding, other: Finding) -> bool:
    if Severity.INFO in (cause.severity, other.severity):
        return False
    later = ORDER[cause.problem] < ORDER[other.problem]
    return cause.problem == other.problem or (later and other.problem in EXPLAINS[cause.problem])


def _named(finding: Finding) -> str:
    return f"{finding.problem} in {finding.where}" if finding.where else str(finding.problem)
