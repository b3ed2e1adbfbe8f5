"""Whether the units of a layer tell anything of its input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rules.outputs import probes_with_constant_output
from stormproof.health.rules.progress import has_learned
from stormproof.lightning.layer_names import join_names
from stormproof.units.unit_activity import MIN_INPUTS, MIN_INPUTS_ALL_DEAD, UnitActivity

MOST_DEAD_SHARE, MANY_DEAD_SHARE, DIED_SHARE = 0.8, 0.5, 0.3
"""Shares of a layer: dead whenever that was, or half of it of which so much died in training."""
CONSTANT_SPREAD = 1e-4
"""The spread over the samples, relative to the size, of what is the same."""
SATURATED_AT_START_SHARE, SATURATED_SHARE = 0.6, 0.8
"""Shares of outputs near an activation's ends: that no usual initialization begins with, and that little passes."""


def choose_measurements(
    sampled: Mapping[str, UnitActivity], validated: Mapping[str, UnitActivity], *, batch_norm: bool
) -> tuple[dict[str, UnitActivity], dict[str, UnitActivity]]:
    """Chooses between training and validation measurements of each layer's units.

    Args:
        sampled: Unit activity by place, measured on training batches in training mode.
        validated: Unit activity by place, measured in a validation pass in evaluation mode.
        batch_norm: Whether the network has a batch norm with running statistics.

    Returns:
        Chosen measurements by place, and validation measurements of places that are active in training but dead in
        evaluation mode.
    """
    measurements, lagging_units = {**sampled, **validated}, {}
    for name in sampled.keys() & validated.keys():
        sample, validation = sampled[name], validated[name]
        is_lagging = (
            batch_norm
            and sample.inputs >= MIN_INPUTS
            and _dead_share(validation) >= MANY_DEAD_SHARE
            and _dead_share(sample) < DIED_SHARE
        )
        if is_lagging and validation.inputs >= MIN_INPUTS:
            lagging_units[name] = validation
        if is_lagging or (validation.inputs < MIN_INPUTS and validation.inputs < sample.inputs):
            measurements[name] = sample
    return measurements, lagging_units


def check_batch_norm_statistics(record: Record) -> Iterator[Finding]:
    """Units are active in training and dead in evaluation mode, because running statistics of batch norm lag."""
    if record.lagging_units:
        yield Finding(
            Problem.BATCH_NORM_STATISTICS_LAG,
            Severity.WARNING,
            join_names(record.lagging_units),
            0,
            record.step,
            {
                "dead_in_evaluation": float(sum(activity.dead for activity in record.lagging_units.values())),
                "dead_in_training": float(sum(record.unit_activity[name].dead for name in record.lagging_units)),
                "units": float(sum(activity.units for activity in record.lagging_units.values())),
            },
            "the running statistics of batch norm are out of date: raise their momentum (torch's default is 0.1), or "
            "recompute them before evaluation with torch.optim.swa_utils.update_bn",
        )


def _dead_share(activity: UnitActivity) -> float:
    return activity.dead / activity.units


def check_dead_units(record: Record) -> Iterator[Finding]:
    """All, most, or more and more of a layer's units put out one value."""
    for name, activity in record.unit_activity.items():
        if activity.units < 4 or activity.inputs < (
            MIN_INPUTS_ALL_DEAD if probes_with_constant_output(record) else activity.inputs_needed
        ):
            continue
        if record.has_collapsed(activity.layer) or _has_constant_input(record, activity.layer):
            continue  # it is not the units
        dead_share, died_share = (
            activity.dead / activity.units,
            (activity.dead - activity.dead_from_start) / activity.units,
        )
        if dead_share < MOST_DEAD_SHARE and not (dead_share >= MANY_DEAD_SHARE and died_share >= DIED_SHARE):
            continue
        yield Finding(
            Problem.DEAD_UNITS,
            Severity.CRITICAL if activity.dead == activity.units else Severity.WARNING,
            name,
            activity.since_step or 0,
            record.step,
            {
                "dead": float(activity.dead),
                "units": float(activity.units),
                "from_the_start": float(activity.dead_from_start),
            },
            "lower lr, use an activation without a flat side (nn.LeakyReLU, nn.ELU), and initialize for it "
            "(nn.init.kaiming_normal_, biases 0)",
        )


def check_saturated_units(record: Record) -> Iterator[Finding]:
    """A bounded activation is at its ends, from the start, or where nothing is learnt."""
    probes = [probe for probe in record.probes if probe.activation_calls]
    if len(probes) < 3 or record.step < 5:
        return
    output_functions = {(stats.layer, stats.producer) for probe in probes for stats in probe.predictions}
    recent_shares: dict[str, list[float]] = {}
    for probe in probes[-3:]:
        for call in probe.activation_calls:
            if (call.layer, call.function) not in output_functions:
                recent_shares.setdefault(call.layer, []).append(call.saturated_share)
    initial_shares = {call.layer: call.saturated_share for call in probes[0].activation_calls}
    for layer, shares in recent_shares.items():
        from_start = (
            initial_shares.get(layer, 0.0) > SATURATED_AT_START_SHARE and min(shares) > SATURATED_AT_START_SHARE
        )
        if from_start or (min(shares) > SATURATED_SHARE and has_learned(record) is False):
            yield Finding(
                Problem.SATURATED_UNITS,
                Severity.WARNING,
                layer,
                0 if from_start else probes[-3].step,
                record.step,
                {"saturated": shares[-1]},
                "initialize smaller (nn.init.xavier_normal_), put a norm before the activation, or use nn.GELU",
            )
            return


def _has_constant_input(record: Record, layer: str | None) -> bool:
    """Whether a layer's output before its activation is the same for all samples."""
    last_probe = next((probe for probe in reversed(record.probes) if probe.layer_calls), None)
    spreads = [call.spread for call in last_probe.layer_calls if call.layer == layer] if last_probe is not None else []
    return bool(spreads) and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)
