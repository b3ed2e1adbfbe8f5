"""Faulty programs whose author did not know the rules."""

from diagnosis_bank.second.faulty import (
    data,
    gradient_resets,
    graphs,
    heads,
    ignored_inputs,
    loss_inputs,
    non_finite,
    optimizers,
    overfitting_and_spikes,
    rates,
    units,
)

PROGRAMS = [
    *rates.PROGRAMS,
    *optimizers.PROGRAMS,
    *gradient_resets.PROGRAMS,
    *units.PROGRAMS,
    *graphs.PROGRAMS,
    *loss_inputs.PROGRAMS,
    *heads.PROGRAMS,
    *data.PROGRAMS,
    *non_finite.PROGRAMS,
    *ignored_inputs.PROGRAMS,
    *overfitting_and_spikes.PROGRAMS,
]
