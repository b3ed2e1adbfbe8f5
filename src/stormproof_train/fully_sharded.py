"""Trains with parameters, gradients and optimizer states sharded over the ranks (FSDP2)."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from stormproof_train.errors import UserError, first_line


class FullySharded(ModelParallelStrategy):
    """ModelParallelStrategy of Lightning in which all ranks share the data and the parameters.

    Args:
        save_distributed_checkpoint: Whether a checkpoint is a folder, to which each rank writes its shard. If False, it
            is one file, which rank 0 gathers in host memory.

    Example:
        >>> FullySharded().restore_checkpoint_after_setup
        True
    """

    def __init__(self, save_distributed_checkpoint: bool = True) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        """Starts the process group with all ranks in the data-parallel dimension."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the parameters of a network over the ranks of ``mesh``, in place. Does nothing if they are sharded.

    The elements of the outermost lists and sequences are gathered one by one. All other parameters, and parameters that
    two elements share, are gathered with the whole network. Buffers, such as the running statistics of BatchNorm, are
    broadcast from rank 0 before each forward pass, as in DDP.

    Args:
        network: Network whose parameters become ``DTensor``, each sharded along its first dimension.
        mesh: Device mesh with the dimension ``data_parallel``.

    Raises:
        UserError: If torch cannot shard the network.
    """
    if isinstance(network, FSDPModule):
        return
    data_parallel_mesh = mesh["data_parallel"]
    try:
        for block in _shardable_modules(network):
            fully_shard(block, mesh=data_parallel_mesh)
        fully_shard(network, mesh=data_parallel_mesh)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"model: the parameters cannot be sharded over the ranks ({first_line(error)}). Use trainer=ddp."
        ) from error
    network.register_forward_pre_hook(_broadcast_buffers)


def _shardable_modules(network: nn.Module) -> list[nn.Module]:
    """Returns the modules whose parameters belong to no other module."""
    blocks = list(dict.fromkeys(_list_blocks(network)))
    owner_counts = Counter(
        parameter
        for owner in network.modules()
        for parameter in owner.parameters(recurse=False)  # modules() yields a shared module once
    )
    return [block for block in blocks if all(owner_counts[weight] == 1 for weight in block.parameters())]


def _list_blocks(module: nn.Module) -> list[nn.Module]:
    """Returns the elements with parameters of the outermost lists and sequences. Lists in lists are flattened."""
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return [child_block for child in module.children() for child_block in _list_blocks(child)]
    trainable_blocks = [child_block for child_block in module if any(True for _ in child_block.parameters())]
    return [
        block
        for child_block in trainable_blocks
        for block in (_list_blocks(child_block) if isinstance(child_block, nn.ModuleList) else [child_block])
    ]


@torch.no_grad()
def _broadcast_buffers(network: nn.Module, _: Any) -> None:
    """Broadcasts the buffers of rank 0 in one collective per type."""
    buffers_by_dtype = defaultdict(list)
    for buffer in network.buffers():
        buffers_by_dtype[buffer.dtype].append(buffer)
    for buffers in buffers_by_dtype.values():
        flat_buffer = torch.cat([buffer.flatten() for buffer in buffers])
        distributed.broadcast(flat_buffer, src=0)
        for buffer, values in zip(buffers, flat_buffer.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))
