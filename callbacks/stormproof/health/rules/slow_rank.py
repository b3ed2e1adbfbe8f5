"""Rule for a rank that slows down the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule

MIN_BATCHES = 30
"""Minimum number of batches."""
MIN_LOST_SHARE = 0.1
"""Minimum share of a step that the other ranks lose."""
MIN_LOST_SECONDS = 0.002
"""Minimum seconds per batch that the other ranks lose. Other programs on the machine can cause shorter delays."""
MIN_SLOWER_SHARE = 0.75
"""Minimum share of batches in which the rank is slower, at the lower confidence limit. Excludes occasional pauses."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a rank that needs more time for its own part of nearly every batch than the other ranks.

    The loss of time is the median over batches of the difference from the median of the other ranks, as a share of the
    whole step.
    """
    rank_times = record.ranks.compute_times
    if rank_times is None or len(rank_times.seconds) < 2:
        return
    batches = len(rank_times.seconds[0])
    if batches < MIN_BATCHES or not rank_times.step_seconds > 0:
        yield NotEnoughEvidence(f"{MIN_BATCHES} timed batches on all ranks (has {batches})")
        return
    slow_rank = max(range(len(rank_times.seconds)), key=lambda rank: median(rank_times.seconds[rank]))
    other_ranks = [seconds for rank, seconds in enumerate(rank_times.seconds) if rank != slow_rank]
    other_medians = [median(batch) for batch in zip(*other_ranks, strict=True)]
    delays = [
        own_seconds - median_seconds
        for own_seconds, median_seconds in zip(rank_times.seconds[slow_rank], other_medians, strict=True)
    ]
    slower_share = sum(delay > 0 for delay in delays) / len(delays)
    lost_share = median(delays) / rank_times.step_seconds
    is_certain = slower_share - 2 * math.sqrt(slower_share * (1 - slower_share) / len(delays)) > MIN_SLOWER_SHARE
    if is_certain and lost_share > MIN_LOST_SHARE and median(delays) > MIN_LOST_SECONDS:
        yield Finding(
            Problem.SLOW_RANK,
            Severity.WARNING,
            f"rank {slow_rank} on {rank_times.hosts[slow_rank]}",
            max(record.step - len(delays), 0),
            record.step,
            {
                "share_of_time_lost": lost_share,
                "seconds_a_batch": median(rank_times.seconds[slow_rank]),
                "seconds_of_the_others": median(other_medians),
            },
            "Check other programs on that machine, its clock rates and its data storage, or exclude the machine.",
        )


RULE = Rule(
    Problem.SLOW_RANK,
    check,
    needs=frozenset({"ranks"}),
)
