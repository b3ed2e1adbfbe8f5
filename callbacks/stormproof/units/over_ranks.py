"""What all ranks saw of the same units, in three collectives for all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stormproof.agreement import world_size
from stormproof.units.extremes import Extremes


@dataclass(frozen=True)
class Seen:
    """What was seen of the units of one place in a pass.

    Attributes:
        extremes: None if nothing was.
        alive_at: (units,), the step of each unit's last sign of life.
        zeros: a sum of shares of zeros, and how many shares.
    """

    extremes: Extremes | None
    alive_at: torch.Tensor
    zeros: torch.Tensor


def over_ranks(places: Sequence[Seen], device: torch.device) -> list[Seen]:
    """Merges what each rank saw, place by place; on the CPU. All ranks call it together with the same places.

    A unit of which any rank saw a NaN has infinite extremes: it is not finite, and not dead.

    Args:
        places: of this rank.
        device: on which ranks communicate.
    """
    if not places:
        return []
    exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no other
    sizes = [len(place.alive_at) for place in places]
    signed = torch.cat([_signed(place, device, exact) for place in places])
    alive_at = torch.cat([place.alive_at.to(device) for place in places])
    sums = torch.stack(
        [
            torch.cat([torch.tensor([float(place.extremes.inputs if place.extremes else 0)]), place.zeros.cpu()])
            for place in places
        ]
    ).to(device, exact)
    if world_size() > 1:
        dist.all_reduce(signed, dist.ReduceOp.MAX)
        dist.all_reduce(alive_at, dist.ReduceOp.MAX)
        dist.all_reduce(sums, dist.ReduceOp.SUM)
    merged = []
    for both, last, (inputs, *zeros) in zip(
        signed.cpu().split([2 * size for size in sizes]), alive_at.cpu().split(sizes), sums.tolist(), strict=True
    ):
        negative, high = both.chunk(2)
        extremes = Extremes(-negative, high, int(inputs)) if inputs else None
        merged.append(Seen(extremes, last, torch.tensor(zeros)))
    return merged


def _signed(place: Seen, device: torch.device, exact: torch.dtype) -> torch.Tensor:
    """The negative minimum and the maximum, so that the larger of two ranks' is that of both."""
    if place.extremes is None:
        return torch.full((2 * len(place.alive_at),), -torch.inf, device=device, dtype=exact)
    both = torch.cat([-place.extremes.low, place.extremes.high]).to(device, exact)
    return both.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
