"""Which part of the data is this process' own."""

from __future__ import annotations

from typing import NamedTuple

from torch import distributed


class Replica(NamedTuple):
    """One of ``world_size`` processes that share the samples; ``rank`` counts from 0."""

    rank: int
    world_size: int


def current_replica() -> Replica:
    """This process among those of torch's process group; alone while there is none.

    It is asked at the beginning of each pass: a loader may be built before the process group is.

    Example:
        >>> current_replica()
        Replica(rank=0, world_size=1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return Replica(distributed.get_rank(), distributed.get_world_size())
    return Replica(0, 1)
