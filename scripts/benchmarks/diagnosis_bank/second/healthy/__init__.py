"""Healthy trainings that look odd."""

from __future__ import annotations

from diagnosis_bank.program import Program
from diagnosis_bank.second.healthy import (
    adversarial,
    generative,
    odd_data,
    odd_losses,
    odd_units,
    partly_trained,
    regressions,
    schedules,
    self_supervised,
    sequences,
    slow_or_rough,
)

PROGRAMS: list[Program] = [
    *adversarial.PROGRAMS,
    *generative.PROGRAMS,
    *odd_data.PROGRAMS,
    *odd_losses.PROGRAMS,
    *odd_units.PROGRAMS,
    *partly_trained.PROGRAMS,
    *regressions.PROGRAMS,
    *schedules.PROGRAMS,
    *self_supervised.PROGRAMS,
    *sequences.PROGRAMS,
    *slow_or_rough.PROGRAMS,
]
