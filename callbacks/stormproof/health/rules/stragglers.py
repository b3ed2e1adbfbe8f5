"""The rank for which all others wait."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record

BATCHES = 30
"""Fewer say nothing."""
LOST = 0.1
"""The share of a step that has to be lost by it."""
LEAST = 0.002
"""And the seconds: what is shorter, any other program on that machine may be the reason of."""
SLOWER = 0.75
"""The share of the batches in which it surely is the slower: a pause now and then is no slow rank."""


def find_slow_rank(record: Record) -> Iterator[Finding]:
    """One rank takes longer for its own part of nearly every batch than the others, and they wait for it.

    What is lost is the median over batches of the difference from the others' median, as a share of the whole step.
    """
    times = record.own_times
    if times is None or len(times.seconds) < 2 or len(times.seconds[0]) < BATCHES or not times.step > 0:
        return
    slow = max(range(len(times.seconds)), key=lambda rank: median(times.seconds[rank]))
    rest = [seconds for rank, seconds in enumerate(times.seconds) if rank != slow]
    others = [median(batch) for batch in zip(*rest, strict=True)]
    behind = [own - other for own, other in zip(times.seconds[slow], others, strict=True)]
    slower = sum(each > 0 for each in behind) / len(behind)
    lost = median(behind) / times.step
    surely = slower - 2 * math.sqrt(slower * (1 - slower) / len(behind)) > SLOWER
    if surely and lost > LOST and median(behind) > LEAST:
        yield Finding(
            Problem.SLOW_RANK,
            Severity.WARNING,
            f"rank {slow} on {times.hosts[slow]}",
            max(record.step - len(behind), 0),
            record.step,
            {
                "share_of_time_lost": lost,
                "seconds_a_batch": median(times.seconds[slow]),
                "seconds_of_the_others": median(others),
            },
            "look what else runs there, at its clocks and its way to the data, or leave that machine out",
        )
