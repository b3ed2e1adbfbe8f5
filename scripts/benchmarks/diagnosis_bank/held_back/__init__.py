"""The half of the bank that is held back: programs no threshold was chosen by."""

from __future__ import annotations

from diagnosis_bank.held_back import (
    data,
    graphs,
    heads,
    healthy_classification,
    healthy_others,
    nonfinite,
    rates,
    steps,
    units,
)
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [
    *rates.PROGRAMS,
    *steps.PROGRAMS,
    *graphs.PROGRAMS,
    *heads.PROGRAMS,
    *nonfinite.PROGRAMS,
    *units.PROGRAMS,
    *data.PROGRAMS,
    *healthy_classification.PROGRAMS,
    *healthy_others.PROGRAMS,
]
