"""Healthy runs with unusual symptoms."""

from __future__ import annotations

from diagnosis_bank.program import Program
from diagnosis_bank.second.healthy import (
    adversarial,
    generative,
    partly_trained,
    regressions,
    schedules,
    self_supervised,
    sequences,
    slow_or_noisy,
    unusual_data,
    unusual_losses,
    unusual_units,
)

PROGRAMS: list[Program] = [
    *adversarial.PROGRAMS,
    *generative.PROGRAMS,
    *unusual_data.PROGRAMS,
    *unusual_losses.PROGRAMS,
    *unusual_units.PROGRAMS,
    *partly_trained.PROGRAMS,
    *regressions.PROGRAMS,
    *schedules.PROGRAMS,
    *self_supervised.PROGRAMS,
    *sequences.PROGRAMS,
    *slow_or_noisy.PROGRAMS,
]
