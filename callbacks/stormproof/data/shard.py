"""Returns the part of the data that this process takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import distributed


class Replica(NamedTuple):
    """One of the processes that share the samples.

    Attributes:
        rank: Rank of the process, from 0.
        world_size: Number of processes.
    """

    rank: int
    world_size: int


def current_replica() -> Replica:
    """Returns rank and world size of torch's process group. Rank 0 of 1 without a process group.

    Call it at the beginning of each epoch, because a loader may be created before the process group.

    Example:
        >>> current_replica()
        Replica(rank=0, world_size=1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return Replica(distributed.get_rank(), distributed.get_world_size())
    return Replica(0, 1)
