"""Trainings that were judged after those of ``second``, by two more people who knew no rule and no other program."""

from diagnosis_bank.program import Program
from diagnosis_bank.third import faulty, healthy

PROGRAMS: list[Program] = [*faulty.PROGRAMS, *healthy.PROGRAMS]
