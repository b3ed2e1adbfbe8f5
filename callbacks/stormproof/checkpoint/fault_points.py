"""The named moments of a commit, at which a drill may kill, stop or fail the process."""

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
"""The points that every commit passes, in this order; from "manifest renamed" on it is committed."""

PRUNING_POINTS = ("pruning", "manifest pruned", "pruned")
"""The points of a retention that deletes something: its log line is written, a manifest is gone, all is done."""

_OBSERVERS: list[Callable[[str], object]] = []


def reach_fault_point(point: str) -> None:
    """Calls the registered observers with the name of a fault point."""
    for observer in tuple(_OBSERVERS):
        observer(point)


@contextmanager
def observe_fault_points(observer: Callable[[str], object]) -> Generator[None, None, None]:
    """Calls ``observer`` with the name of each point that is reached while the block runs, in any thread.

    The observer runs where the point is: what it raises, the commit raises.

    Args:
        observer: takes one of :data:`COMMIT_POINTS` or :data:`PRUNING_POINTS`.

    Example:
        >>> seen = []
        >>> with observe_fault_points(seen.append):
        ...     reach_fault_point("commit begins")
        >>> reach_fault_point("pruned")
        >>> seen
        ['commit begins']
    """
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.remove(observer)
