"""Programs of kinds that the other parts lack, written without knowledge of the rules and judged once before use.

Four authors wrote them from questions, issues, papers and tutorials: about images, language, tables and probabilistic
models, and unusual training loops. They did not see the rules.
"""

from diagnosis_bank.fourth import faulty, healthy
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [*faulty.PROGRAMS, *healthy.PROGRAMS]
