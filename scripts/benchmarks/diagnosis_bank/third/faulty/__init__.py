"""Faulty programs that resemble the bugs of a benchmark: common training code with one bug each."""

from __future__ import annotations

from diagnosis_bank.third.faulty import gradient_resets, ignored_inputs, non_finite, optimizers, rates, targets, units

PROGRAMS = [
    *rates.PROGRAMS,
    *optimizers.PROGRAMS,
    *gradient_resets.PROGRAMS,
    *units.PROGRAMS,
    *targets.PROGRAMS,
    *non_finite.PROGRAMS,
    *ignored_inputs.PROGRAMS,
]
