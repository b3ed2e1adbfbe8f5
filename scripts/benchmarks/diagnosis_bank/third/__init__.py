"""Programs that were judged after the part ``second``.

Two other people wrote them. They knew neither the rules nor the programs of the other parts.
"""

from diagnosis_bank.program import Program
from diagnosis_bank.third import faulty, healthy

PROGRAMS: list[Program] = [*faulty.PROGRAMS, *healthy.PROGRAMS]
