"""Whether the data can be learnt from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean, median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rules.progress import has_learned, has_risen

SAME = 256
"""Samples whose targets are all the same; of a class that has 2% of them, the chance of none in as many is 0.6%."""
HARMED = 5.0
"""First outputs so many times the targets, or a first loss so many times that of the best constant, are out of size."""
WAITED, BATCHES, LEAST_WAIT, LONG_WAIT = 0.5, 20, 0.002, 0.015
"""The share of batches that took longer to come than to be trained on; of how many; seconds to mention and warn of."""


def find_degenerate_targets(record: Record) -> Iterator[Finding]:
    """All targets are the same."""
    same = record.same_targets
    if same is None or (same < SAME and not (record.epoch >= 1 and same >= 32)):
        return
    yield Finding(
        Problem.DEGENERATE_TARGETS,
        Severity.CRITICAL,
        "target",
        0,
        record.step,
        {"samples": float(same), "different_targets": 1.0},
        "look at how targets are read; if the data is sorted by target, shuffle: DataLoader(shuffle=True)",
    )


def find_badly_scaled_input(record: Record) -> Iterator[Finding]:
    """The input is of a size or an offset that harms the training."""
    inputs = record.inputs
    if inputs is None or not record.inputs_are_bad:
        return
    begins_out_of_size = _begins_out_of_size(record)
    saturates = any(call.saturated > 0.9 for probe in record.probes[:1] for call in probe.activations)
    if begins_out_of_size or saturates or has_learned(record) is False or has_risen(record) or record.broken:
        yield Finding(
            Problem.INPUT_BADLY_SCALED,
            Severity.WARNING,
            "input",
            0,
            record.step,
            {
                "mean": inputs.mean,
                "root_mean_square": inputs.rms,
                "largest_scale": inputs.largest_scale,
                "smallest_scale": inputs.smallest_scale,
            },
            "subtract each feature's mean and divide by its standard deviation, of the training data, or put a "
            "nn.BatchNorm first",
        )


def _begins_out_of_size(record: Record) -> bool:
    """Whether the first outputs are far larger than they should be."""
    facts = next((each for probe in record.probes[:1] for each in probe.predictions), None)
    if facts is None or len(record.first) < 3:
        return False
    if facts.takes == "numbers":
        return max(abs(facts.low), abs(facts.high)) > HARMED * max(abs(facts.target_low), abs(facts.target_high))
    constants = [each.constant for each in record.comparisons if each.constant is not None and each.constant > 0]
    return bool(constants) and fmean(record.first[:3]) > HARMED * constants[0]


def find_starvation(record: Record) -> Iterator[Finding]:
    """Most steps are waited for longer than they take; a sign test, because single waits may be long by chance."""
    waits = record.waits
    if len(waits) < BATCHES:
        return
    longer = sum(wait > work for wait, work in waits) / len(waits)
    wait = median(wait for wait, _ in waits)
    if longer - 2 * math.sqrt(longer * (1 - longer) / len(waits)) > WAITED and wait > LEAST_WAIT:
        waited, worked = (sum(part) for part in zip(*waits, strict=True))
        yield Finding(
            Problem.DATA_STARVATION,
            Severity.WARNING if wait > LONG_WAIT else Severity.INFO,
            record.loader,
            max(record.step - len(waits), 0),
            record.step,
            {"waiting_share": waited / (waited + worked), "seconds_a_batch": wait},
            _faster(record),
        )


def _faster(record: Record) -> str:
    """Returns what makes the training loader faster."""
    if record.workers is None:
        return f"prepare the data once and cache it: {record.loader} is not a torch DataLoader, which has num_workers"
    if record.workers == 0:
        return (
            f"{record.loader}(num_workers=4, pin_memory=True, persistent_workers=True), or prepare the data once and "
            "cache it"
        )
    return f"increase num_workers above {record.workers} if cores are idle, or prepare the data once and cache it"


def find_replicas_that_differ(record: Record) -> Iterator[Finding]:
    """The ranks hold different weights."""
    if record.replicas_differ > 0:
        yield Finding(
            Problem.REPLICAS_DIVERGED,
            Severity.CRITICAL,
            "",
            0,
            record.step,
            {"relative_difference": record.replicas_differ},
            "all ranks must begin with the same weights and take the same steps: no parameter changed outside of the "
            "optimizer, no step skipped on one rank alone",
        )
