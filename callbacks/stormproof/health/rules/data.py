"""Rules for targets, inputs, data loading and replicas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean, median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rules.progress import has_learned, has_risen

MIN_CONSTANT_TARGETS = 256
"""Minimum number of identical targets. A class with a share of 2% is absent from as many samples with probability
0.6%."""
MAX_OUTPUT_RATIO = 5.0
"""First outputs are too large above this multiple of the targets, or of the best constant loss for the first loss."""
MAX_WAIT_SHARE, MIN_BATCHES, MIN_WAIT_SECONDS, LONG_WAIT_SECONDS = 0.5, 20, 0.002, 0.015
"""Share of batches that take longer to load than to train on, minimum number of batches, and median seconds of waiting
for INFO and for WARNING."""


def check_degenerate_targets(record: Record) -> Iterator[Finding]:
    """Reports identical targets."""
    constant_samples = record.constant_target_samples
    if constant_samples is None or (
        constant_samples < MIN_CONSTANT_TARGETS and not (record.epoch >= 1 and constant_samples >= 32)
    ):
        return
    yield Finding(
        Problem.DEGENERATE_TARGETS,
        Severity.CRITICAL,
        "target",
        0,
        record.step,
        {"samples": float(constant_samples), "different_targets": 1.0},
        "Check the code that reads the targets. If the data is sorted by target, use DataLoader(shuffle=True).",
    )


def check_input_scale(record: Record) -> Iterator[Finding]:
    """Reports inputs whose scale or offset harms the run."""
    inputs = record.input_stats
    if inputs is None or not record.has_badly_scaled_inputs:
        return
    has_large_outputs = _has_large_outputs(record)
    is_saturated = any(call.saturated_share > 0.9 for trace in record.traces[:1] for call in trace.activation_calls)
    if (
        has_large_outputs
        or is_saturated
        or has_learned(record) is False
        or has_risen(record)
        or record.non_finite_origin
    ):
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
            "Standardize each feature with the mean and standard deviation of the training data, or start the network "
            "with a batch norm.",
        )


def _has_large_outputs(record: Record) -> bool:
    """Returns whether the first outputs far exceed the targets, or the first loss exceeds the best constant loss."""
    stats = next((entry for trace in record.traces[:1] for entry in trace.predictions), None)
    if stats is None or len(record.first_losses) < 3:
        return False
    if stats.loss_input == "numbers":
        return max(abs(stats.low), abs(stats.high)) > MAX_OUTPUT_RATIO * max(
            abs(stats.target_low), abs(stats.target_high)
        )
    constants = [
        entry.constant_loss
        for entry in record.comparisons
        if entry.constant_loss is not None and entry.constant_loss > 0
    ]
    return bool(constants) and fmean(record.first_losses[:3]) > MAX_OUTPUT_RATIO * constants[0]


def check_data_starvation(record: Record) -> Iterator[Finding]:
    """Reports steps that mostly wait longer for data than they compute. The sign test ignores single long waits."""
    waits = record.batch_waits
    if len(waits) < MIN_BATCHES:
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
            record.loader_name,
            max(record.step - len(waits), 0),
            record.step,
            {"waiting_share": wait_seconds / (wait_seconds + work_seconds), "seconds_a_batch": wait},
            _loader_advice(record),
        )


def _loader_advice(record: Record) -> str:
    """Returns advice to make the training loader faster."""
    if record.num_workers is None:
        return f"Preprocess the data once and cache it, or replace {record.loader_name} by a DataLoader with workers."
    if record.num_workers == 0:
        return (
            f"Use {record.loader_name}(num_workers=4, pin_memory=True, persistent_workers=True), or preprocess the "
            "data once and cache it."
        )
    return f"Raise num_workers above {record.num_workers} if cores are idle, or preprocess the data once and cache it."


def check_replicas(record: Record) -> Iterator[Finding]:
    """Reports ranks with different weights."""
    if record.replica_difference > 0:
        yield Finding(
            Problem.REPLICAS_DIVERGED,
            Severity.CRITICAL,
            "",
            0,
            record.step,
            {"relative_difference": record.replica_difference},
            "Start all ranks with the same weights and the same optimizer steps. Do not change parameters outside the "
            "optimizer, and do not skip steps on single ranks.",
        )
