"""Waits that are long, and no hang."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_active_waits: list[str] = []


@contextmanager
def long_wait(reason: str) -> Iterator[None]:
    """Tells :class:`stormproof.HangWatch` that this process waits, and will not wait for ever.

    For what takes long and shows no sign of work: storage that has to be synced, an answer of another service. Whoever
    waits has a timeout of their own.

    Args:
        reason: it waits for.

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
    """What this process waits for, if it said so."""
    return _active_waits[-1] if _active_waits else None
