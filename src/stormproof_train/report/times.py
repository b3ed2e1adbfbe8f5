"""Where the time of a step went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.report.kit.json_numbers import rounded
from stormproof_train.report.logged import Series

PARTS = ("data", "compute", "checkpoint", "other")
BUCKETS = 100


def of_steps(logged: Mapping[str, Series], batches: Mapping[int, int]) -> dict[str, Any] | None:
    r"""Seconds a step, in four parts, over windows from one logging step to the next of the same attempt.

    A window lasts T seconds and has n steps of b batches each. A batch takes t seconds, a share w of which it waits for
    data, and training stands still for c seconds for checkpoints. Data is :math:`bwt`, compute :math:`b(1-w)t`,
    checkpoint :math:`c/n`, and other, such as validation and logging, what is left of :math:`T/n`.

    Args:
        logged: everything that was.
        batches: of a step, by attempt; of one that is not there, one.

    Returns:
        ``starts`` and ``ends``, of each bucket of windows the step behind which it begins and its last; ``seconds``, by
        part the means of its windows; ``mean``, by part that of all. None where no two logging steps of an attempt were
        timed.
    """
    timed, waited = logged.get("time/batch_seconds"), logged.get("time/data_wait_fraction")
    if timed is None or waited is None or not np.array_equal(timed.steps, waited.steps):
        return None
    windows = np.flatnonzero(np.diff(timed.attempts) == 0) + 1
    if not len(windows):
        return None
    before = windows - 1
    counts = (timed.steps[windows] - timed.steps[before]).astype(np.float64)
    batch = timed.values[windows] * counts * [batches.get(number) or 1 for number in timed.attempts[windows].tolist()]
    wait = waited.values[windows]
    stalls = _stalls(logged.get("checkpoint/stall_seconds"), timed.steps, windows)
    wall = timed.times[windows] - timed.times[before]
    parts = np.stack([batch * wait, batch * (1 - wait), stalls, np.maximum(0, wall - batch - stalls)])
    starts = np.unique(np.arange(BUCKETS) * len(windows) // BUCKETS)
    seconds = np.add.reduceat(parts, starts, axis=1) / np.add.reduceat(counts, starts)
    return {
        "starts": timed.steps[before][starts].tolist(),
        "ends": timed.steps[windows][[*(starts[1:] - 1), len(windows) - 1]].tolist(),
        "seconds": {name: rounded(values) for name, values in zip(PARTS, seconds, strict=True)},
        "mean": dict(zip(PARTS, rounded(parts.sum(1) / counts.sum()), strict=True)),
    }


def _stalls(series: Series | None, steps: NDArray[Any], windows: NDArray[Any]) -> NDArray[Any]:
    """Of each window, how long training stood still in it."""
    if series is None:
        return np.zeros(len(windows))
    place = np.searchsorted(steps, series.steps)
    inside = place < len(steps)
    return np.bincount(place[inside], series.values[inside], minlength=len(steps))[windows]
