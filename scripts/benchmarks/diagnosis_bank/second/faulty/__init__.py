"""Faulty programs of an examiner who has not seen the rules."""

from diagnosis_bank.second.faulty import (
    blind,
    courses,
    cuts,
    flow,
    heads,
    inputs,
    leftovers,
    mismatches,
    nonfinite,
    omissions,
    rates,
)

PROGRAMS = [
    *rates.PROGRAMS,
    *omissions.PROGRAMS,
    *leftovers.PROGRAMS,
    *flow.PROGRAMS,
    *cuts.PROGRAMS,
    *mismatches.PROGRAMS,
    *heads.PROGRAMS,
    *inputs.PROGRAMS,
    *nonfinite.PROGRAMS,
    *blind.PROGRAMS,
    *courses.PROGRAMS,
]
