"""Splits the time of a step into data loading, compute, checkpoints and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from stormproof_train.report.kit.json_numbers import round_for_json
from stormproof_train.report.logged import Series

PARTS = ("data", "compute", "checkpoint", "other")
MAX_BUCKETS = 100


class StepTimes(TypedDict):
    """Seconds per step in buckets of windows.

    Attributes:
        starts: Step before each bucket.
        ends: Last step of each bucket.
        seconds: Mean of each bucket, by part. None if not finite.
        mean: Mean of all windows, by part. None if not finite.
    """

    starts: list[int]
    ends: list[int]
    seconds: dict[str, list[Any]]
    mean: dict[str, Any]


def step_times(logged: Mapping[str, Series], batches: Mapping[int, int]) -> StepTimes | None:
    r"""Computes seconds per step in four parts, over windows between logging steps of the same attempt.

    A window takes T seconds and has n steps of b batches each. A batch takes t seconds and waits for data for a share w
    of it. Checkpoints stall training for c seconds. The parts are data :math:`bwt`, compute :math:`b(1-w)t`, checkpoint
    :math:`c/n`, and other, such as validation and logging, the remainder of :math:`T/n`.

    Args:
        logged: All logged series by name.
        batches: Batches per step by attempt. Missing attempts have one.

    Returns:
        The times, or None if no two logging steps of an attempt were timed.
    """
    batch_seconds, wait_fractions = logged.get("time/batch_seconds"), logged.get("time/data_wait_fraction")
    if batch_seconds is None or wait_fractions is None or not np.array_equal(batch_seconds.steps, wait_fractions.steps):
        return None
    windows = np.flatnonzero(np.diff(batch_seconds.attempts) == 0) + 1
    if not len(windows):
        return None
    previous = windows - 1
    step_counts = (batch_seconds.steps[windows] - batch_seconds.steps[previous]).astype(np.float64)
    batch_time = (
        batch_seconds.values[windows]
        * step_counts
        * [batches.get(number) or 1 for number in batch_seconds.attempts[windows].tolist()]
    )
    wait_share = wait_fractions.values[windows]
    stalls = _stall_seconds(logged.get("checkpoint/stall_seconds"), batch_seconds.steps, windows)
    wall_seconds = batch_seconds.times[windows] - batch_seconds.times[previous]
    parts = np.stack(
        [
            batch_time * wait_share,
            batch_time * (1 - wait_share),
            stalls,
            np.maximum(0, wall_seconds - batch_time - stalls),
        ]
    )
    starts = np.unique(np.arange(MAX_BUCKETS) * len(windows) // MAX_BUCKETS)
    seconds = np.add.reduceat(parts, starts, axis=1) / np.add.reduceat(step_counts, starts)
    return {
        "starts": batch_seconds.steps[previous][starts].tolist(),
        "ends": batch_seconds.steps[windows][[*(starts[1:] - 1), len(windows) - 1]].tolist(),
        "seconds": {name: round_for_json(values) for name, values in zip(PARTS, seconds, strict=True)},
        "mean": dict(zip(PARTS, round_for_json(parts.sum(1) / step_counts.sum()), strict=True)),
    }


def _stall_seconds(series: Series | None, steps: NDArray[Any], windows: NDArray[Any]) -> NDArray[Any]:
    """Returns the seconds for which checkpoints stalled training, for each window."""
    if series is None:
        return np.zeros(len(windows))
    indices = np.searchsorted(steps, series.steps)
    is_inside = indices < len(steps)
    return np.bincount(indices[is_inside], series.values[is_inside], minlength=len(steps))[windows]
