"""What ranks hold of tensors that are spread over them (``DTensor``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

ShardRows = list[tuple[list[int], torch.Tensor]]
"""Of some tensors, by their numbers, (parts, tensors, values): a row for each part of each."""


def to_local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of ``tensor`` that this rank holds; the tensor itself where it is not spread."""
    if not isinstance(tensor, DTensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        tensor = tensor.redistribute(
            placements=[
                Replicate() if source_placement.is_partial() else source_placement
                for source_placement in tensor.placements
            ]
        )
    return tensor.to_local()


def gather_shards(rows: torch.Tensor, tensors: Sequence[torch.Tensor]) -> ShardRows:
    """The rows of all parts of some tensors, from those of each rank's :func:`to_local`.

    Nothing is communicated where no tensor is a ``DTensor``; else all ranks call it together, and there is one
    collective for each way in which tensors are spread.

    Args:
        rows: (n, values), a row for the own part of each of the n ``tensors``.
        tensors: those.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return [([*range(len(tensors))], rows[None])]
    groups = defaultdict(list)
    for index, tensor in enumerate(tensors):
        groups[(tensor.device_mesh, tuple(tensor.placements)) if isinstance(tensor, DTensor) else None].append(index)
    return [
        (indices, _gather_rows(rows if len(groups) == 1 else rows[indices], tensors[indices[0]]))
        for indices in groups.values()
    ]


def iterate_shards(rows: ShardRows) -> Iterator[tuple[int, list[float]]]:
    """The number of a tensor and a row of it, part by part; waits for the device."""
    for indices, shards in rows:
        for shard in shards.tolist():
            yield from zip(indices, shard, strict=True)


def _gather_rows(rows: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    if not isinstance(reference, DTensor):
        return rows[None]
    placements = [Shard(0) if placement.is_shard() else Replicate() for placement in reference.placements]
    return DTensor.from_local(rows[None].contiguous(), reference.device_mesh, placements, run_check=False).full_tensor()
