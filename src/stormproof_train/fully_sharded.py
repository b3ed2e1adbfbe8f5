"""Training whose parameters, gradients and optimizer states are spread over the ranks (FSDP2)."""

from __future__ import annotations

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


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

    What its outermost lists and sequences hold is gathered part by part, and all else together with the whole.

    Args:
        network: its parameters become ``DTensor``, each cut along its first dimension.
        mesh: with the dimension ``data_parallel``.
    """
    if isinstance(network, FSDPModule):
        return
    ranks = mesh["data_parallel"]
    for part in _parts(network):
        fully_shard(part, mesh=ranks)
    fully_shard(network, mesh=ranks)


def _parts(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [part for part in module if any(True for _ in part.parameters())]
    return [part for child in module.children() for part in _parts(child)]
