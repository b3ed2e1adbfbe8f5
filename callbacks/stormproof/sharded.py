"""What ranks hold of tensors that are spread over them (``DTensor``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType
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


def load_whole(
    module: pl.LightningModule, optimizers: Sequence[torch.optim.Optimizer], checkpoint: Mapping[str, Any]
) -> None:
    """Spreads the weights and the optimizers' states of a checkpoint, which every rank has whole.

    The optimizers keep their hyperparameters. All ranks call it together.

    Args:
        module: whose parameters are spread.
        optimizers: of its parameters.
        checkpoint: of Lightning, in one file.
    """
    options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
    set_model_state_dict(module, checkpoint["state_dict"], options=options)
    for optimizer, saved in zip(optimizers, checkpoint["optimizer_states"], strict=True):
        current = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        named = FullyShardedDataParallel.rekey_optim_state_dict(saved, OptimStateKeyType.PARAM_NAME, module)
        set_optimizer_state_dict(module, optimizer, named, options=options)
        for group, kept in zip(optimizer.param_groups, current, strict=True):
            group.update(kept)


def _gathered(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return rows[None]
    placements = [Shard(0) if placement.is_shard() else Replicate() for placement in like.placements]
    return DTensor.from_local(rows[None].contiguous(), like.device_mesh, placements, run_check=False).full_tensor()
