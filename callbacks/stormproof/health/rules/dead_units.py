"""Rules for dead and saturated units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rules.outputs import traces_with_constant_output
from stormproof.health.rules.progress import has_learned
from stormproof.lightning.layer_names import join_names
from stormproof.units.unit_activity import MIN_INPUTS, MIN_INPUTS_ALL_DEAD, UnitActivity

MOST_DEAD_SHARE, MANY_DEAD_SHARE, DIED_SHARE = 0.8, 0.5, 0.3
"""Shares of the units of a layer. A finding needs the first share dead, or the second share dead and the third share
died in training."""
CONSTANT_SPREAD = 1e-4
"""Standard deviation over the samples, relative to the root mean square, below which a signal is constant."""
SATURATED_AT_START_SHARE, SATURATED_SHARE = 0.6, 0.8
"""Shares of saturated outputs that no usual initialization produces, and that block most of the gradient."""


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
            "Raise the momentum of batch norm (default 0.1), or recompute the running statistics before evaluation "
            "with torch.optim.swa_utils.update_bn.",
            likely_cause="the running statistics of batch norm are out of date",
        )


def _dead_share(activity: UnitActivity) -> float:
    """Returns the share of dead units."""
    return activity.dead / activity.units


def check_dead_units(record: Record) -> Iterator[Finding]:
    """Reports layers of which most units are dead, or at least half if many of them died in training."""
    for name, activity in record.unit_activity.items():
        if activity.units < 4 or activity.inputs < (
            MIN_INPUTS_ALL_DEAD if traces_with_constant_output(record) else activity.inputs_needed
        ):
            continue
        if record.has_collapsed(activity.layer) or _has_constant_input(record, activity.layer):
            continue  # the cause is elsewhere
        dead_share = activity.dead / activity.units
        died_in_training = have_died_in_training(activity.dead, activity.units, activity.dead_from_start)
        if dead_share < MOST_DEAD_SHARE and not (dead_share >= MANY_DEAD_SHARE and died_in_training):
            continue
        likely_cause, advice = _explain_dead_units(record, died_in_training=died_in_training)
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
            advice,
            likely_cause=likely_cause,
        )


def have_died_in_training(dead: float, units: float, from_the_start: float) -> bool:
    """Returns whether many units of a layer are dead but were active at initialization."""
    return (dead - from_the_start) / units >= DIED_SHARE


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
    lr = max((group.max_lr for group in record.groups), default=0.0)
    if lr <= 0:
        return "the learning rate is too high", f"Lower lr, or {activation_advice}"
    return f"the learning rate ({lr:.3g}) is too high", f"Lower lr to {lr / 10:.3g}, or {activation_advice}"


def check_saturated_units(record: Record) -> Iterator[Finding]:
    """Reports bounded activations that are saturated from the start, or while the loss does not improve."""
    traces = [trace for trace in record.traces if trace.activation_calls]
    if len(traces) < 3 or record.step < 5:
        return
    output_functions = {(stats.layer, stats.producer) for trace in traces for stats in trace.predictions}
    recent_shares: dict[str, list[float]] = {}
    for trace in traces[-3:]:
        for call in trace.activation_calls:
            if (call.layer, call.function) not in output_functions:
                recent_shares.setdefault(call.layer, []).append(call.saturated_share)
    initial_shares = {call.layer: call.saturated_share for call in traces[0].activation_calls}
    for layer, shares in recent_shares.items():
        from_start = (
            initial_shares.get(layer, 0.0) > SATURATED_AT_START_SHARE and min(shares) > SATURATED_AT_START_SHARE
        )
        if from_start or (min(shares) > SATURATED_SHARE and has_learned(record) is False):
            yield Finding(
                Problem.SATURATED_UNITS,
                Severity.WARNING,
                layer,
                0 if from_start else traces[-3].step,
                record.step,
                {"saturated": shares[-1]},
                "Initialize with smaller weights (nn.init.xavier_normal_), put a norm before the activation, or use "
                "nn.GELU.",
                likely_cause="the initial weights or the inputs are too large" if from_start else "",
            )
            return


def _has_constant_input(record: Record, layer: str | None) -> bool:
    """Returns whether the output of a layer before its activation is the same for all samples."""
    last_trace = next((trace for trace in reversed(record.traces) if trace.layer_calls), None)
    spreads = [call.spread for call in last_trace.layer_calls if call.layer == layer] if last_trace is not None else []
    return bool(spreads) and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)
