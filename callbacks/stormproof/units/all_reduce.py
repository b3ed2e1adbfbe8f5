"""Reduces the activity of all units over ranks, with three collectives in total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stormproof.distributed.collectives import world_size
from stormproof.units.running_min_max import RunningExtremes, accumulation_dtype


@dataclass(frozen=True)
class ReducedCounts:
    """Counts of the units of one watch point in an epoch.

    Attributes:
        extremes: Minimum and maximum output of each unit. None without inputs.
        alive_at: Last step at which the output of each unit was not constant, ``(units,)``.
        nonzero_sum: Sum of the fractions of nonzero outputs over batches.
        nonzero_batches: Number of these batches.
    """

    extremes: RunningExtremes | None
    alive_at: torch.Tensor
    nonzero_sum: float
    nonzero_batches: int


def all_reduce_counts(local_counts: Sequence[ReducedCounts], device: torch.device) -> list[ReducedCounts]:
    """Reduces counts over all ranks. All ranks must call this together, with the same watch points in the same order.

    A unit with a NaN on any rank gets infinite extremes, so that it is not dead.

    Args:
        local_counts: Counts of this rank, one per watch point.
        device: Device for communication between ranks.

    Returns:
        Counts of all ranks, with tensors on the CPU.
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
    """Returns the negative minimum and the maximum, so that one MAX reduction reduces both."""
    if counts.extremes is None:
        return torch.full((2 * len(counts.alive_at),), -torch.inf, device=device, dtype=dtype)
    extremes = torch.cat([-counts.extremes.low, counts.extremes.high]).to(device, dtype)
    return extremes.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
