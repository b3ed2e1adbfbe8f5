"""What all ranks saw of the same units, in three collectives for all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stormproof.distributed.collectives import world_size
from stormproof.units.accumulation_dtype import exact_dtype
from stormproof.units.running_min_max import Extremes


@dataclass(frozen=True)
class Tally:
    """What was seen of the units of one place in a pass.

    Attributes:
        extremes: None if nothing was.
        alive_at: (units,), the step of each unit's last sign of life.
        nonzero: a sum of shares of outputs that are not 0.
        shares: how many shares.
    """

    extremes: Extremes | None
    alive_at: torch.Tensor
    nonzero: float
    shares: int


def over_ranks(places: Sequence[Tally], device: torch.device) -> list[Tally]:
    """Merges what each rank saw, place by place; on the CPU. All ranks call it together with the same places.

    A unit of which any rank saw a NaN has infinite extremes: it is not finite, and not dead.

    Args:
        places: of this rank.
        device: on which ranks communicate.
    """
    if not places:
        return []
    exact = exact_dtype(device)
    sizes = [len(place.alive_at) for place in places]
    signed = torch.cat([_signed(place, device, exact) for place in places])
    alive_at = torch.cat([place.alive_at.to(device) for place in places])
    inputs = [0 if place.extremes is None else place.extremes.inputs for place in places]
    counted = [(count, place.nonzero, place.shares) for count, place in zip(inputs, places, strict=True)]
    sums = torch.tensor(counted, dtype=exact, device=device)
    if world_size() > 1:
        dist.all_reduce(signed, dist.ReduceOp.MAX)
        dist.all_reduce(alive_at, dist.ReduceOp.MAX)
        dist.all_reduce(sums, dist.ReduceOp.SUM)
    parts = (signed.cpu().split([2 * size for size in sizes]), alive_at.cpu().split(sizes), sums.tolist())
    return [_merged(*part) for part in zip(*parts, strict=True)]


def _merged(signed: torch.Tensor, alive_at: torch.Tensor, sums: Sequence[float]) -> Tally:
    negative, high = signed.chunk(2)
    inputs, nonzero, shares = sums
    return Tally(Extremes(-negative, high, int(inputs)) if inputs else None, alive_at, nonzero, int(shares))


def _signed(place: Tally, device: torch.device, exact: torch.dtype) -> torch.Tensor:
    """The negative minimum and the maximum, so that the larger of two ranks' is that of both."""
    if place.extremes is None:
        return torch.full((2 * len(place.alive_at),), -torch.inf, device=device, dtype=exact)
    both = torch.cat([-place.extremes.low, place.extremes.high]).to(device, exact)
    return both.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
