"""Programs that the finished rules judged first. The rules were changed afterwards, based on the results.

Two people wrote the faulty and the healthy programs. They knew neither the rules nor the programs of the other parts.
"""

from diagnosis_bank.program import Program
from diagnosis_bank.second import faulty, healthy

PROGRAMS: list[Program] = [*faulty.PROGRAMS, *healthy.PROGRAMS]
