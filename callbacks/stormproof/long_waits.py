"""Marks long waits, so that the watchdog does not mistake them for hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stormproof.arguments import check_arguments

_active_waits: list[str] = []


@check_arguments()
@contextmanager
def long_wait(reason: str) -> Iterator[None]:
    """Pauses the clock of :class:`stormproof.HangWatch` in this process while the block runs.

    Use it for a wait without CPU work or data transfer, such as syncing storage or waiting for another service. The
    block must have its own timeout, because a hang inside it is not detected. Blocks can be nested.

    Args:
        reason: What the process waits for, as a noun phrase.

    Raises:
        TypeError: If ``reason`` is not a string.

    Example:
        >>> with long_wait("the queue of the evaluation service"):
        ...     get_current_wait()
        'the queue of the evaluation service'
    """
    _active_waits.append(reason)
    try:
        yield
    finally:
        _active_waits.remove(reason)


def get_current_wait() -> str | None:
    """Returns the reason of the innermost active :func:`long_wait`, or None."""
    return _active_waits[-1] if _active_waits else None
