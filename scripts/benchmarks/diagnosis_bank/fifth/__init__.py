"""Everyday programs and kinds that other parts lack, written without knowledge of the rules and judged once before use.

Four authors wrote them from questions, issues and papers: about everyday training, signals, science, and
recommenders, language models and policies. They did not see the rules. Many sources of healthy programs were cited
from memory.
"""

from diagnosis_bank.fifth import faulty, healthy
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [*faulty.PROGRAMS, *healthy.PROGRAMS]
