"""Shares of dead units in a layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stormproof.units.unit_activity import MIN_INPUTS, UnitActivity

MANY_DEAD_SHARE, DIED_SHARE = 0.5, 0.3
"""Minimum shares of the units of a layer: dead units, and units that died in training."""


def choose_measurements(
    sampled: Mapping[str, UnitActivity],
    validated: Mapping[str, UnitActivity],
    running: Mapping[str, UnitActivity],
    mode_functions: Mapping[str, Collection[str]],
) -> tuple[dict[str, UnitActivity], dict[str, UnitActivity] | None]:
    """Chooses between training and validation measurements of each layer's units.

    Args:
        sampled: Unit activity by place, measured on training batches in training mode.
        validated: Unit activity by place, measured in a validation pass in evaluation mode.
        running: Unit activity by place in the current training epoch, possibly of few inputs.
        mode_functions: Functions before a place that compute something else in evaluation mode, by place.

    Returns:
        Chosen measurements by place, and validation measurements of places that are active in training but dead in
        evaluation mode. The latter are None if these units may have died between the two measurements.
    """
    measurements, inactive_units = {**sampled, **validated}, {}
    is_unconfirmed = False
    for name in sampled.keys() & validated.keys():
        sample, validation = sampled[name], validated[name]
        is_inactive = (
            bool(mode_functions[name])
            and sample.inputs >= MIN_INPUTS
            and _dead_share(validation) >= MANY_DEAD_SHARE
            and _dead_share(sample) < DIED_SHARE
        )
        if is_inactive and validation.inputs >= MIN_INPUTS:
            inactive_units[name] = validation
            later = running.get(name)  # a few inputs show that units are active
            is_confirmed = later is not None and later.step > validation.step and _dead_share(later) < DIED_SHARE
            is_unconfirmed |= not is_confirmed
        if is_inactive or (validation.inputs < MIN_INPUTS and validation.inputs < sample.inputs):
            measurements[name] = sample
    return measurements, None if is_unconfirmed else inactive_units


def _dead_share(activity: UnitActivity) -> float:
    """Returns the share of dead units."""
    return activity.dead / activity.units


def have_died_in_training(dead: float, units: float, from_the_start: float) -> bool:
    """Returns whether many units of a layer are dead but were active at initialization."""
    return (dead - from_the_start) / units >= DIED_SHARE
