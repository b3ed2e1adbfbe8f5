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
    non_finite.check_non_finite,
    data.check_degenerate_targets,
    outputs.check_broadcast_mismatch,
    outputs.check_loss_input_mismatch,
    outputs.check_unreachable_targets,
    optimizers.check_zero_learning_rate,
    optimizers.check_not_in_optimizer,
    optimizers.check_in_two_optimizers,
    autograd_graph.check_no_gradient,
    autograd_graph.check_zero_grad,
    data.check_replicas,
    data.check_input_scale,
    optimizers.check_high_learning_rate,
    gradient_flow.check_exploding_gradients,
    dead_units.check_batch_norm_statistics,
    dead_units.check_dead_units,
    dead_units.check_saturated_units,
    gradient_flow.check_vanishing_gradients,
    optimizers.check_low_learning_rate,
    optimizers.check_unchanged_weights,
    outputs.check_constant_output,
    progress.check_unrelated_targets,
    progress.check_no_better_than_constant,
    overfitting.check_overfitting,
    loss_spike.check_loss_spike,
    plateau.check_plateau,
    data.check_data_starvation,
    stragglers.check_slow_rank,
)
"""From causes to symptoms."""

_P = Problem
SYMPTOMS = frozenset({
    _P.DEAD_UNITS, _P.SATURATED_UNITS, _P.VANISHING_GRADIENTS, _P.WEIGHTS_UNCHANGED, _P.OUTPUT_IGNORES_INPUT,
    _P.TARGETS_UNRELATED_TO_INPUTS, _P.NO_BETTER_THAN_CONSTANT, _P.LOSS_SPIKE, _P.PLATEAU,
})  # fmt: skip
"""What any cause that comes before it may have brought about."""
ORDER = {problem: number for number, problem in enumerate((
    _P.NON_FINITE_DATA, _P.DEGENERATE_TARGETS, _P.BROADCAST_MISMATCH, _P.LOSS_INPUT_MISMATCH,
    _P.UNREACHABLE_TARGETS, _P.LEARNING_RATE_ZERO, _P.NOT_IN_OPTIMIZER, _P.IN_TWO_OPTIMIZERS, _P.NO_GRADIENT,
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
         _P.EXPLODING_GRADIENTS, _P.BROADCAST_MISMATCH, _P.LOSS_INPUT_MISMATCH, _P.UNREACHABLE_TARGETS,
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


def apply_rules(record: Record) -> list[Finding]:
    """All that the rules find."""
    return [finding for rule in RULES for finding in rule(record)]


def find_root_causes(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a cause, each with what it explains; causes come first, what may be meant so last."""
    ordered = sorted(findings, key=lambda candidate: (candidate.severity == Severity.INFO, ORDER[candidate.problem]))
    roots: list[Finding] = []
    for finding in ordered:
        root_index = next((index for index, candidate in enumerate(roots) if _explains(candidate, finding)), None)
        if root_index is None:
            roots.append(finding)
        else:
            consequences = dict.fromkeys(
                (*roots[root_index].consequences, _finding_name(finding), *finding.consequences)
            )
            roots[root_index] = replace(roots[root_index], consequences=tuple(consequences))
    return roots


def _explains(cause: Finding, symptom: Finding) -> bool:
    if Severity.INFO in (cause.severity, symptom.severity):
        return False
    cause_comes_first = ORDER[cause.problem] < ORDER[symptom.problem]
    return cause.problem == symptom.problem or (cause_comes_first and symptom.problem in EXPLAINS[cause.problem])


def _finding_name(finding: Finding) -> str:
    return f"{finding.problem} in {finding.where}" if finding.where else str(finding.problem)
