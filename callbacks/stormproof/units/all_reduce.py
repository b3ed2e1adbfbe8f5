"""What all ranks saw of the same units, in three collectives for all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stormproof.distributed.collectives import world_size
from stormproof.units.accumulation_dtype import accumulation_dtype
from stormproof.units.running_min_max import RunningExtremes


@dataclass(frozen=True)
class ReducedCounts:
    """Counts of the units of one place in an epoch.

    Attributes:
        extremes: None if nothing was.
        alive_at: (units,), the step of each unit's last sign of life.
        nonzero_sum: a sum of shares of outputs that are not 0.
        nonzero_batches: how many shares.
    """

    extremes: RunningExtremes | None
    alive_at: torch.Tensor
    nonzero_sum: float
    nonzero_batches: int


def all_reduce_counts(local_counts: Sequence[ReducedCounts], device: torch.device) -> list[ReducedCounts]:
    """Merges what each rank saw, place by place; on the CPU. All ranks call it together with the same places.

    A unit of which any rank saw a NaN has infinite extremes: it is not finite, and not dead.

    Args:
        local_counts: of this rank.
        device: on which ranks communicate.
    """
    if not local_counts:
        return []
    dtype = accumulation_dtype(device)
    sizes = [len(unit_counts.alive_at) for unit_counts in local_counts]
    signed_extremes = torch.cat([_signed_extremes(unit_counts, device, dtype) for unit_counts in local_counts])
    alive_at = torch.cat([unit_counts.alive_at.to(device) for unit_counts in local_counts])
    inputs = [0 if unit_counts.extremes is None else unit_counts.extremes.inputs for unit_counts in local_counts]
    sum_rows = [
        (count, unit_counts.nonzero_sum, unit_counts.nonzero_batches)
        for count, unit_counts in zip(inputs, local_counts, strict=True)
    ]
    sums = torch.tensor(sum_rows, dtype=dtype, device=device)
    if world_size() > 1:
        dist.all_reduce(signed_extremes, dist.ReduceOp.MAX)
        dist.all_reduce(alive_at, dist.ReduceOp.MAX)
        dist.all_reduce(sums, dist.ReduceOp.SUM)
    parts = (signed_extremes.cpu().split([2 * size for size in sizes]), alive_at.cpu().split(sizes), sums.tolist())
    return [_merge(*part) for part in zip(*parts, strict=True)]


def _merge(signed_extremes: torch.Tensor, alive_at: torch.Tensor, sums: Sequence[float]) -> ReducedCounts:
    negative, high = signed_extremes.chunk(2)
    inputs, nonzero_sum, nonzero_batches = sums
    return ReducedCounts(
        RunningExtremes(-negative, high, int(inputs)) if inputs else None, alive_at, nonzero_sum, int(nonzero_batches)
    )


def _signed_extremes(counts: ReducedCounts, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The negative minimum and the maximum, so that the larger of two ranks' is that of both."""
    if counts.extremes is None:
        return torch.full((2 * len(counts.alive_at),), -torch.inf, device=device, dtype=dtype)
    extremes = torch.cat([-counts.extremes.low, counts.extremes.high]).to(device, dtype)
    return extremes.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
