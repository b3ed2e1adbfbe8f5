"""Waits that are long, and no hang."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_waits: list[str] = []


@contextmanager
def long_wait(what: str) -> Iterator[None]:
    """Tells :class:`stormproof.HangWatch` that this process waits, and will not wait for ever.

    For what takes long and shows no sign of work: storage that has to be synced, an answer of another service. Whoever
    waits has a timeout of their own.

    Args:
        what: it waits for.

    Example:
        >>> with long_wait("the queue of the evaluation service"):
        ...     waits_for()
        'the queue of the evaluation service'
    """
    _waits.append(what)
    try:
        yield
    finally:
        _waits.remove(what)


def waits_for() -> str | None:
    """What this process waits for, if it said so."""
    return _waits[-1] if _waits else None
