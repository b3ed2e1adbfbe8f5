"""The held-out half of the bank. No threshold was chosen on these programs."""

from __future__ import annotations

from diagnosis_bank.held_out import (
    data,
    graphs,
    heads,
    healthy_classification,
    healthy_others,
    non_finite,
    optimizers,
    rates,
    units,
)
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [
    *rates.PROGRAMS,
    *optimizers.PROGRAMS,
    *graphs.PROGRAMS,
    *heads.PROGRAMS,
    *non_finite.PROGRAMS,
    *units.PROGRAMS,
    *data.PROGRAMS,
    *healthy_classification.PROGRAMS,
    *healthy_others.PROGRAMS,
]
