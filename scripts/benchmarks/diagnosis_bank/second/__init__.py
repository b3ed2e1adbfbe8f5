"""Trainings that were first judged by finished rules, which were then amended by what that showed.

Faulty and healthy ones were written by two people who knew no rule, and no program of the other parts.
"""

from diagnosis_bank.program import Program
from diagnosis_bank.second import faulty, healthy

PROGRAMS: list[Program] = [*faulty.PROGRAMS, *healthy.PROGRAMS]
