"""Differences between ranks."""

from __future__ import annotations

from dataclasses import dataclass

from stormproof.health.observers.rank_compute_time import RankComputeTimes


@dataclass(frozen=True)
class Ranks:
    """Ranks of a run.

    Attributes:
        compute_times: Compute times of the ranks. None for a single rank.
        weight_difference: Largest relative difference of the sums of the weights between ranks.
    """

    compute_times: RankComputeTimes | None = None
    weight_difference: float = 0.0
