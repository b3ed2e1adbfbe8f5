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


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
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
    ranks = mesh["data_parallel"]
    try:
        for part in _parts(network):
            fully_shard(part, mesh=ranks)
        fully_shard(network, mesh=ranks)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"model: its parameters cannot be spread over the ranks ({first_line(error)}): use trainer=ddp"
        ) from error
    network.register_forward_pre_hook(_share_buffers)


def _parts(network: nn.Module) -> list[nn.Module]:
    """Those that have parameters which no other has."""
    parts = list(dict.fromkeys(_held(network)))
    users = Counter(
        parameter
        for owner in network.modules()
        for parameter in owner.parameters(recurse=False)  # a module that comes twice owns it once
    )
    return [part for part in parts if all(users[each] == 1 for each in part.parameters())]


def _held(module: nn.Module) -> list[nn.Module]:
    """What the outermost lists and sequences hold that have parameters; a list in a list is looked into."""
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return [part for child in module.children() for part in _held(child)]
    with_parameters = [part for part in module if any(True for _ in part.parameters())]
    return [held for part in with_parameters for held in (_held(part) if isinstance(part, nn.ModuleList) else [part])]


@torch.no_grad()
def _share_buffers(network: nn.Module, _: Any) -> None:
    """Gives all ranks rank 0's, in one collective for each type."""
    kinds = defaultdict(list)
    for buffer in network.buffers():
        kinds[buffer.dtype].append(buffer)
    for buffers in kinds.values():
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        distributed.broadcast(flat, src=0)
        for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))
