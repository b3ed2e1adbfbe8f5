"""Access to the shards of distributed tensors (``DTensor``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

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


def to_full(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the full tensor. All ranks must call it together if the tensor is a ``DTensor``."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Shards ``value``, which is equal on all ranks, like ``reference`` and on its device. Uses no collective."""
    if not isinstance(reference, DTensor):
        return value.to(reference.device)
    device_value = value.to(reference.to_local().device)
    # src_data_rank=None: every rank has the value, so that no rank broadcasts it
    return distribute_tensor(device_value, reference.device_mesh, reference.placements, src_data_rank=None)


def gather_shards(rows: torch.Tensor, tensors: Sequence[torch.Tensor]) -> ShardRows:
    """Gathers one row of values per shard of each tensor from all ranks.

    Uses no collective if no tensor is a ``DTensor``. Otherwise all ranks must call it together, and it uses one
    collective per sharded dimension of each combination of device mesh and placements.

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
    shards = rows[None].contiguous()
    for dimension, placement in enumerate(reference.placements):
        if placement.is_replicate() or placement.is_partial():
            continue
        # sharded, also by FSDP2 after tensor parallelism, where is_shard() is False
        group = reference.device_mesh.get_group(dimension)
        gathered_shards = [torch.empty_like(shards) for _ in range(group.size())]
        dist.all_gather(gathered_shards, shards, group)
        shards = torch.cat(gathered_shards)
    return shards
