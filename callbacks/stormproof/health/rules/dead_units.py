"""Rule for dead units."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.dead_shares import MANY_DEAD_SHARE, have_died_in_training
from stormproof.health.measures.predictions import CONSTANT_SPREAD, is_output_constant
from stormproof.health.measures.progress import has_learned, is_early, is_falling
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, NotEnoughEvidence, Rule
from stormproof.units.unit_activity import MIN_INPUTS_ALL_DEAD

MOST_DEAD_SHARE = 0.8
"""Minimum share of dead units for a finding, unless many units died in training."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports layers of which most units are dead, or at least half if many of them died in training.

    The severity is INFO for units that died in training, if other units of the layer are active and the run makes
    progress. It is also INFO early in the run, or before progress is known, if less than 80% of the units are dead.
    """
    if not record.units.activity:
        yield NotEnoughEvidence("measured outputs of activations")
    for name, activity in record.units.dropped.items():
        yield Finding(
            Problem.DEAD_UNITS,
            Severity.INFO,  # does not hide other findings
            name,
            0,
            record.step,
            {
                "dead_in_evaluation": float(activity.dead),
                "dead_in_training": float(record.units.activity[name].dead),
                "units": float(activity.units),
            },
            "Lower the dropout rate before the layer, or initialize its biases to zero.",
            likely_cause="the units are active only on inputs that dropout has scaled",
        )
    for name, activity in record.units.activity.items():
        if activity.units < 4:
            continue
        if record.weights.have_collapsed(activity.layer) or _has_constant_input(record, activity.layer):
            continue  # the cause is elsewhere
        dead_share = activity.dead / activity.units
        died_in_training = have_died_in_training(activity.dead, activity.units, activity.dead_from_start)
        if dead_share < MOST_DEAD_SHARE and not (dead_share >= MANY_DEAD_SHARE and died_in_training):
            continue
        inputs_needed = MIN_INPUTS_ALL_DEAD if is_output_constant(record) else activity.inputs_needed
        if activity.inputs < inputs_needed:
            missing = f"{inputs_needed} inputs of {name} (has {activity.inputs})"
            yield NotEnoughEvidence(missing, is_likely=True)
            continue
        likely_cause, advice = _explain_dead_units(record, died_in_training=died_in_training)
        yield Finding(
            Problem.DEAD_UNITS,
            _severity(record, dead_share, died_in_training=died_in_training),
            name,
            activity.since_step or 0,
            record.step,
            {
                "dead": float(activity.dead),
                "units": float(activity.units),
                "from_the_start": float(activity.dead_from_start),
            },
            advice,
            likely_cause=likely_cause,
        )


def _severity(record: Record, dead_share: float, *, died_in_training: bool) -> Severity:
    """Returns the severity for a share of dead units."""
    if dead_share == 1:
        return Severity.CRITICAL
    makes_progress = has_learned(record)
    if makes_progress is False and is_falling(record):
        makes_progress = True
    is_unclear = makes_progress is None or is_early(record)
    if died_in_training and (makes_progress or (is_unclear and dead_share < MOST_DEAD_SHARE)):
        return Severity.INFO
    return Severity.WARNING


def _explain_dead_units(record: Record, *, died_in_training: bool) -> tuple[str, str]:
    """Returns the likely cause and the advice.

    Units that were active at initialization were probably killed by large updates. Other units were dead before the
    first step, so the learning rate cannot be the cause.
    """
    activation_advice = "use an activation without a flat side (nn.LeakyReLU, nn.ELU)."
    if not died_in_training:
        return (
            "the initial weights or biases",
            f"Initialize for the activation (nn.init.kaiming_normal_, biases 0), or {activation_advice}",
        )
    lr = max((group.max_lr for group in record.optimizers.groups), default=0.0)
    if lr <= 0:
        return "the learning rate is too high", f"Lower lr, or {activation_advice}"
    return f"the learning rate ({lr:.3g}) is too high", f"Lower lr to {lr / 10:.3g}, or {activation_advice}"


def _has_constant_input(record: Record, layer: str | None) -> bool:
    """Returns whether the output of a layer before its activation is the same for all samples."""
    last_trace = next((trace for trace in reversed(record.predictions.traces) if trace.layer_calls), None)
    spreads = [call.spread for call in last_trace.layer_calls if call.layer == layer] if last_trace is not None else []
    return bool(spreads) and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)


RULE = Rule(
    Problem.DEAD_UNITS,
    check,
    explains=SYMPTOMS - {Problem.DEAD_UNITS} | {Problem.LEARNING_RATE_TOO_LOW},
    explains_if_critical={Problem.NO_BETTER_THAN_CONSTANT},  # other units of the layer can fit the targets
    needs=frozenset({"losses", "optimizers", "predictions", "units", "weights"}),
)
