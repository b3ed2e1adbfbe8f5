"""Access to the shards of distributed tensors (``DTensor``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

ShardRows = list[tuple[list[int], torch.Tensor]]
"""Pairs of tensor indices and rows of shape ``(shards, tensors, values)``."""


def to_local(tensor: torch.Tensor) -> torch.Tensor:
    """Returns this rank's shard of ``tensor``, or the tensor itself if it is not distributed."""
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
    """Gathers one row of values per shard of each tensor from all ranks.

    Uses no collective if no tensor is a ``DTensor``. Otherwise all ranks must call it together, and it uses one
    collective per combination of device mesh and placements.

    Args:
        rows: Values of this rank's shards with shape ``(n, values)``.
        tensors: The n tensors.
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
    """Yields the index of a tensor and one of its rows, shard by shard. Synchronizes with the device."""
    for indices, shards in rows:
        for shard in shards.tolist():
            yield from zip(indices, shard, strict=True)


def _gather_rows(rows: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    if not isinstance(reference, DTensor):
        return rows[None]
    placements = [Shard(0) if placement.is_shard() else Replicate() for placement in reference.placements]
    return DTensor.from_local(rows[None].contiguous(), reference.device_mesh, placements, run_check=False).full_tensor()
