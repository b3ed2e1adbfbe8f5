"""What ranks hold of tensors that are spread over them (``DTensor``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

Rows = list[tuple[list[int], torch.Tensor]]
"""Of some tensors, by their numbers, (parts, tensors, values): a row for each part of each."""


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of ``tensor`` that this rank holds; the tensor itself where it is not spread."""
    if not isinstance(tensor, DTensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        tensor = tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])
    return tensor.to_local()


def all_parts(rows: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Rows:
    """The rows of all parts of some tensors, from those of each rank's :func:`own_part`.

    Nothing is communicated where no tensor is a ``DTensor``; else all ranks call it together, and there is one
    collective for each way in which tensors are spread.

    Args:
        rows: (n, values), a row for the own part of each of the n ``tensors``.
        tensors: those.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return [([*range(len(tensors))], rows[None])]
    ways = defaultdict(list)
    for number, tensor in enumerate(tensors):
        ways[(tensor.device_mesh, tuple(tensor.placements)) if isinstance(tensor, DTensor) else None].append(number)
    return [
        (members, _gathered(rows if len(ways) == 1 else rows[members], tensors[members[0]]))
        for members in ways.values()
    ]


def each_part(rows: Rows) -> Iterator[tuple[int, list[float]]]:
    """The number of a tensor and a row of it, part by part; waits for the device."""
    for members, parts in rows:
        for part in parts.tolist():
            yield from zip(members, part, strict=True)


def _gathered(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return rows[None]
    placements = [Shard(0) if placement.is_shard() else Replicate() for placement in like.placements]
    return DTensor.from_local(rows[None].contiguous(), like.device_mesh, placements, run_check=False).full_tensor()
