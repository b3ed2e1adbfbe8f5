"""Differences between ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankComputeTimes:
    """Compute times of all ranks.

    Attributes:
        hosts: Host names of the ranks.
        seconds: Seconds per batch of each rank, for the same last batches on all ranks.
        step_seconds: Seconds of a whole training step.
    """

    hosts: tuple[str, ...]
    seconds: tuple[tuple[float, ...], ...]
    step_seconds: float


@dataclass(frozen=True)
class Ranks:
    """Ranks of a run.

    Attributes:
        compute_times: Compute times of the ranks. None for a single rank.
        weight_difference: Largest relative difference of the sums of the weights between ranks.
    """

    compute_times: RankComputeTimes | None = None
    weight_difference: float = 0.0
