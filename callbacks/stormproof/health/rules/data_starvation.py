"""Rule for steps that wait for data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule

MAX_WAIT_SHARE, MIN_BATCHES, MIN_WAIT_SECONDS, LONG_WAIT_SECONDS = 0.5, 20, 0.002, 0.015
"""Share of batches that take longer to load than to train on, minimum number of batches, and median seconds of waiting
for INFO and for WARNING."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports steps that mostly wait longer for data than they compute. The sign test ignores single long waits."""
    waits = record.timing.batch_waits
    if len(waits) < MIN_BATCHES:
        yield NotEnoughEvidence(f"{MIN_BATCHES} timed batches (has {len(waits)})")
        return
    long_wait_share = sum(wait > work for wait, work in waits) / len(waits)
    wait = median(wait for wait, _ in waits)
    if (
        long_wait_share - 2 * math.sqrt(long_wait_share * (1 - long_wait_share) / len(waits)) > MAX_WAIT_SHARE
        and wait > MIN_WAIT_SECONDS
    ):
        wait_seconds, work_seconds = (sum(column) for column in zip(*waits, strict=True))
        yield Finding(
            Problem.DATA_STARVATION,
            Severity.WARNING if wait > LONG_WAIT_SECONDS else Severity.INFO,
            record.timing.loader_name,
            max(record.step - len(waits), 0),
            record.step,
            {"waiting_share": wait_seconds / (wait_seconds + work_seconds), "seconds_a_batch": wait},
            _loader_advice(record),
        )


def _loader_advice(record: Record) -> str:
    """Returns advice to make the training loader faster."""
    timing = record.timing
    if timing.num_workers is None:
        return f"Preprocess the data once and cache it, or replace {timing.loader_name} by a DataLoader with workers."
    if timing.num_workers == 0:
        return (
            f"Use {timing.loader_name}(num_workers=4, pin_memory=True, persistent_workers=True), or preprocess the "
            "data once and cache it."
        )
    return f"Raise num_workers above {timing.num_workers} if cores are idle, or preprocess the data once and cache it."


RULE = Rule(
    Problem.DATA_STARVATION,
    check,
    needs=frozenset({"timing"}),
)
