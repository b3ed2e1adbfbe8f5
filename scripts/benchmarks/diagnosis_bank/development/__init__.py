"""The half of the bank on which the rules were developed."""

from diagnosis_bank.development import (
    data,
    graphs,
    heads,
    healthy_kinds,
    healthy_others,
    healthy_own_steps,
    healthy_supervised,
    non_finite,
    optimizers,
    rates,
    units,
)
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [
    *optimizers.PROGRAMS,
    *rates.PROGRAMS,
    *graphs.PROGRAMS,
    *units.PROGRAMS,
    *data.PROGRAMS,
    *heads.PROGRAMS,
    *non_finite.PROGRAMS,
    *healthy_supervised.PROGRAMS,
    *healthy_others.PROGRAMS,
    *healthy_kinds.PROGRAMS,
    *healthy_own_steps.PROGRAMS,
]
