"""Sums over tensors that are spread over ranks (``DTensor``), in one collective for each way of spreading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of ``tensor`` that this rank holds; the tensor itself where it is not spread."""
    if not isinstance(tensor, DTensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        tensor = tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])
    return tensor.to_local()


def sum_over_parts(sums: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Completes sums over each rank's :func:`own_part` to sums over the whole tensors. All ranks call it together.

    Args:
        sums: (..., n), a sum over the own part of each of the n ``tensors``.
        tensors: those; if none is a ``DTensor`` nothing is communicated.

    Returns:
        (..., n), the same on all ranks that share the tensors.
    """
    spread = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, DTensor):
            placements = tuple(Partial() if p.is_shard() else Replicate() for p in tensor.placements)
            spread[tensor.device_mesh, placements].append(index)
    for (mesh, placements), members in spread.items():
        part = DTensor.from_local(sums[..., members].contiguous(), mesh, placements, run_check=False)
        sums[..., members] = part.full_tensor()
    return sums
