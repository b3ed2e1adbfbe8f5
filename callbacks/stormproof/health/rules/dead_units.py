"""Whether the units of a layer tell anything of its input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rules.outputs import ignores_input
from stormproof.health.rules.progress import has_learned
from stormproof.lightning.layer_names import join_names
from stormproof.units.unit_activity import FEW, INPUTS, UnitActivity

MOST, MANY, DIED = 0.8, 0.5, 0.3
"""Shares of a layer: dead whenever that was, or half of it of which so much died in training."""
SAME = 1e-4
"""The spread over the samples, relative to the size, of what is the same."""
FROM_START, SATURATED = 0.6, 0.8
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
    places, lagging = {**sampled, **validated}, {}
    for name in sampled.keys() & validated.keys():
        sample, full = sampled[name], validated[name]
        lags = batch_norm and sample.inputs >= INPUTS and _share(full) >= MANY and _share(sample) < DIED
        if lags and full.inputs >= INPUTS:
            lagging[name] = full
        if lags or (full.inputs < INPUTS and full.inputs < sample.inputs):
            places[name] = sample
    return places, lagging


def find_lagging_statistics(record: Record) -> Iterator[Finding]:
    """Units are active in training and dead in evaluation mode, because running statistics of batch norm lag."""
    if record.lagging:
        yield Finding(
            Problem.BATCH_NORM_STATISTICS_LAG,
            Severity.WARNING,
            join_names(record.lagging),
            0,
            record.step,
            {
                "dead_in_evaluation": float(sum(each.dead for each in record.lagging.values())),
                "dead_in_training": float(sum(record.places[name].dead for name in record.lagging)),
                "units": float(sum(each.units for each in record.lagging.values())),
            },
            "the running statistics of batch norm are out of date: raise their momentum (torch's default is 0.1), or "
            "recompute them before evaluation with torch.optim.swa_utils.update_bn",
        )


def _share(place: UnitActivity) -> float:
    return place.dead / place.units


def find_dead_units(record: Record) -> Iterator[Finding]:
    """All, most, or more and more of a layer's units put out one value."""
    for name, place in record.places.items():
        if place.units < 4 or place.inputs < (FEW if ignores_input(record) else place.inputs_needed):
            continue
        if record.has_collapsed(place.layer) or _gets_the_same(record, place.layer):
            continue  # it is not the units
        share, died = place.dead / place.units, (place.dead - place.born) / place.units
        if share < MOST and not (share >= MANY and died >= DIED):
            continue
        yield Finding(
            Problem.DEAD_UNITS,
            Severity.CRITICAL if place.dead == place.units else Severity.WARNING,
            name,
            place.since_step or 0,
            record.step,
            {"dead": float(place.dead), "units": float(place.units), "from_the_start": float(place.born)},
            "lower lr, use an activation without a flat side (nn.LeakyReLU, nn.ELU), and initialize for it "
            "(nn.init.kaiming_normal_, biases 0)",
        )


def find_saturated_units(record: Record) -> Iterator[Finding]:
    """A bounded activation is at its ends, from the start, or where nothing is learnt."""
    probes = [probe for probe in record.probes if probe.activations]
    if len(probes) < 3 or record.step < 5:
        return
    makers = {(facts.layer, facts.made_by) for probe in probes for facts in probe.predictions}
    last: dict[str, list[float]] = {}
    for probe in probes[-3:]:
        for call in probe.activations:
            if (call.layer, call.function) not in makers:
                last.setdefault(call.layer, []).append(call.saturated)
    begin = {call.layer: call.saturated for call in probes[0].activations}
    for layer, shares in last.items():
        from_start = begin.get(layer, 0.0) > FROM_START and min(shares) > FROM_START
        if from_start or (min(shares) > SATURATED and has_learned(record) is False):
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


def _gets_the_same(record: Record, layer: str | None) -> bool:
    """Whether a layer's output before its activation is the same for all samples."""
    last = next((probe for probe in reversed(record.probes) if probe.layers), None)
    spreads = [call.spread for call in last.layers if call.layer == layer] if last is not None else []
    return bool(spreads) and all(spread is not None and spread < SAME for spread in spreads)
