"""Faulty programs as the author of a benchmark of training bugs would seed them: plain trainings with one bug each."""

from __future__ import annotations

from diagnosis_bank.third.faulty import bookkeeping, clearing, depth, fitting, numbers, rates, targets

PROGRAMS = [
    *rates.PROGRAMS,
    *bookkeeping.PROGRAMS,
    *clearing.PROGRAMS,
    *depth.PROGRAMS,
    *targets.PROGRAMS,
    *numbers.PROGRAMS,
    *fitting.PROGRAMS,
]
