"""Named points of a commit, where tests can kill, suspend or fail the process."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

COMMIT_POINTS = (
    "commit begins",
    "checkpoint half written",
    "checkpoint written",
    "checkpoint synced",
    "checkpoint renamed",
    "manifest written",
    "manifest synced",
    "manifest renamed",
    "log appended",
)
"""Fault points of a commit, in this order. The checkpoint counts as committed from "manifest renamed" on."""

SHARD_POINTS = (
    "folder created",
    "shard half written",
    "shard written",
    "shard synced",
    "shard renamed",
    "unsharded state half written",
    "unsharded state written",
    "unsharded state synced",
    "unsharded state renamed",
    "metadata half written",
    "metadata written",
    "metadata synced",
    "metadata renamed",
)
"""Fault points of a sharded commit. They replace the ``checkpoint …`` points. All ranks reach the ``shard …`` points.
Only rank 0 reaches the others."""

PRUNING_POINTS = ("pruning", "manifest pruned", "pruned")
"""Fault points of a deletion: the log line is written, a manifest is deleted, all checkpoints are deleted."""

_OBSERVERS: list[Callable[[str], object]] = []


def reach_fault_point(point: str) -> None:
    """Calls the registered observers with the name of a fault point."""
    for observer in tuple(_OBSERVERS):
        observer(point)


@contextmanager
def observe_fault_points(observer: Callable[[str], object]) -> Generator[None, None, None]:
    """Calls ``observer`` with the name of each fault point that any thread reaches while the block runs.

    The observer runs at the fault point in the same thread. Its exception propagates to the commit.

    Args:
        observer: Takes an item of :data:`COMMIT_POINTS`, :data:`SHARD_POINTS` or :data:`PRUNING_POINTS`.

    Example:
        >>> points = []
        >>> with observe_fault_points(points.append):
        ...     reach_fault_point("commit begins")
        >>> reach_fault_point("pruned")
        >>> points
        ['commit begins']
    """
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.remove(observer)
