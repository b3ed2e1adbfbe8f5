"""Healthy runs that could cause false alarms."""

from __future__ import annotations

from diagnosis_bank.third.healthy import (
    heads_and_scales,
    rates_and_decay,
    self_supervised,
    several_optimizers,
    slow_starts,
    unusual_parts,
    weak_signals,
)

PROGRAMS = [
    *slow_starts.PROGRAMS,
    *rates_and_decay.PROGRAMS,
    *weak_signals.PROGRAMS,
    *heads_and_scales.PROGRAMS,
    *several_optimizers.PROGRAMS,
    *self_supervised.PROGRAMS,
    *unusual_parts.PROGRAMS,
]
