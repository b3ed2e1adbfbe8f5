"""Training whose parameters, gradients and optimizer states are spread over the ranks (FSDP2)."""

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
    """Lightning's ModelParallelStrategy where all ranks share the data, and with it the parameters.

    A checkpoint is one whole file: rank 0 gathers it in the memory of its host.

    Example:
        >>> FullySharded().restore_checkpoint_after_setup
        True
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Starts the process group, with as many parts as there are ranks."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads a network's parameters over the ranks of ``mesh``, in place, once.

    What its outermost lists and sequences hold is gathered part by part, and all else together with the whole, as is
    what two parts share. Buffers, such as the running statistics of BatchNorm, are rank 0's at each forward pass: so
    they are in DDP.

    Args:
        network: its parameters become ``DTensor``, each cut along its first dimension.
        mesh: with the dimension ``data_parallel``.

    Raises:
        UserError: if torch cannot spread it.
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
            f"model: its parameters cannot be spread over the ranks ({first_line(error)}): use trainer=ddp"
        ) from error
    network.register_forward_pre_hook(_broadcast_buffers)


def _shardable_modules(network: nn.Module) -> list[nn.Module]:
    """Those that have parameters which no other has."""
    blocks = list(dict.fromkeys(_list_blocks(network)))
    owner_counts = Counter(
        parameter
        for owner in network.modules()
        for parameter in owner.parameters(recurse=False)  # a module that comes twice owns it once
    )
    return [block for block in blocks if all(owner_counts[weight] == 1 for weight in block.parameters())]


def _list_blocks(module: nn.Module) -> list[nn.Module]:
    """What the outermost lists and sequences hold that have parameters; a list in a list is looked into."""
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
    """Gives all ranks rank 0's, in one collective for each type."""
    buffers_by_dtype = defaultdict(list)
    for buffer in network.buffers():
        buffers_by_dtype[buffer.dtype].append(buffer)
    for buffers in buffers_by_dtype.values():
        flat_buffer = torch.cat([buffer.flatten() for buffer in buffers])
        distributed.broadcast(flat_buffer, src=0)
        for buffer, values in zip(buffers, flat_buffer.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))
