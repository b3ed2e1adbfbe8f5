"""Returns the part of the data that this process takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import distributed
from torch.distributed import distributed_c10d


class Replica(NamedTuple):
    """Data-parallel replica of this process.

    Attributes:
        rank: Data-parallel rank, from 0. The rank of the process, without tensor parallelism.
        world_size: Number of data-parallel ranks. The number of processes, without tensor parallelism.
    """

    rank: int
    world_size: int


def current_replica() -> Replica:
    """Returns the data-parallel rank and the number of data-parallel ranks. Rank 0 of 1 without a process group.

    With tensor parallelism, the ranks of each tensor-parallel group take the same samples. Returns the data-parallel
    rank and the number of data-parallel ranks, as Lightning's ModelParallelStrategy does for a ``DistributedSampler``.

    Call it at the beginning of each epoch, because a loader may be created before the process group.

    Example:
        >>> current_replica()
        Replica(rank=0, world_size=1)
    """
    if distributed.is_available() and distributed.is_initialized():
        ranks_per_replica = _tensor_parallel_size()
        return Replica(distributed.get_rank() // ranks_per_replica, distributed.get_world_size() // ranks_per_replica)
    return Replica(0, 1)


def _tensor_parallel_size() -> int:
    """Returns the size of the tensor-parallel groups in the last device mesh of ModelParallelStrategy. 1 without one.

    A loader does not know its trainer. For each dimension of a mesh, torch creates process groups with the name of the
    dimension in their description, except for a dimension with all ranks.
    """
    names = ("mesh_data_parallel", "mesh_tensor_parallel")
    groups = [group for group in distributed_c10d._world.pg_map if group.group_desc in names]  # noqa: SLF001
    if not groups:
        return 1
    size = groups[-1].size()
    return size if groups[-1].group_desc == "mesh_tensor_parallel" else distributed.get_world_size() // size
