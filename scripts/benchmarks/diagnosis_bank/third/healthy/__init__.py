"""Healthy trainings that a careless monitor could accuse."""

from __future__ import annotations

from diagnosis_bank.third.healthy import (
    faint_and_noisy,
    heads_and_scales,
    odd_parts,
    rates_and_decay,
    self_supervised,
    several_optimizers,
    slow_starts,
)

PROGRAMS = [
    *slow_starts.PROGRAMS,
    *rates_and_decay.PROGRAMS,
    *faint_and_noisy.PROGRAMS,
    *heads_and_scales.PROGRAMS,
    *several_optimizers.PROGRAMS,
    *self_supervised.PROGRAMS,
    *odd_parts.PROGRAMS,
]
