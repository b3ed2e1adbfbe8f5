"""Rule for weights that do not change."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observers.learning_rates import ZERO_LR_SHARE
from stormproof.health.record import Record
from stormproof.health.rule import NO_LEARNING, NotEnoughEvidence, Rule
from stormproof.lightning.layer_names import join_names

MIN_UNCHANGED_STEPS = 5
"""Minimum number of measurements without a change of the weights."""
MIN_STEPS = 20
"""Minimum number of steps before a finding."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports layers whose weights do not change although they have a gradient and a learning rate above zero."""
    if not record.gradients.reached_layers:
        yield NotEnoughEvidence("a gradient")
        return
    steps = record.step - record.gradients.first_gradient_step
    if steps < MIN_STEPS:
        yield NotEnoughEvidence(f"{MIN_STEPS} steps with a gradient (has {steps})")
        return
    weights = [layers for step, layers in record.weights.stats.items() if step >= record.gradients.first_gradient_step]
    if len(weights) < MIN_UNCHANGED_STEPS:
        yield NotEnoughEvidence(f"{MIN_UNCHANGED_STEPS} traced steps (has {len(weights)})")
        return
    if any(entry.zero_since is not None for entry in record.optimizers.groups):
        return
    if len({entry.optimizer for entry in record.optimizers.groups}) > 1 and record.epoch < 1:
        return  # optimizers may alternate between epochs
    has_late_start = any(group.initial_lr <= ZERO_LR_SHARE * group.max_lr for group in record.optimizers.groups)
    if has_late_start and record.epoch < 2:
        return  # a group that started with a learning rate of zero may have been trained for a few steps only
    recent_weights = weights[-MIN_UNCHANGED_STEPS:] if has_late_start else weights
    unchanged_layers = [
        layer
        for layer, stats in recent_weights[-1].items()
        if layer in record.gradients.reached_layers and all(entry.get(layer) == stats for entry in recent_weights)
    ]
    if unchanged_layers:
        yield Finding(
            Problem.WEIGHTS_UNCHANGED,
            Severity.WARNING,
            join_names(unchanged_layers),
            0,
            record.step,
            {"layers": float(len(unchanged_layers)), "of": float(len(recent_weights[-1])), "steps": float(record.step)},
            "Check that the optimizer steps, that nothing resets the weights, and that updates are not below the "
            "precision of 16-bit weights.",
        )


RULE = Rule(
    Problem.WEIGHTS_UNCHANGED,
    check,
    explains=NO_LEARNING - {Problem.LOSS_SPIKE, Problem.WEIGHTS_UNCHANGED},
    needs=frozenset({"gradients", "optimizers", "weights"}),
)
