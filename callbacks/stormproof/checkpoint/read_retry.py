"""Repeats reads after transient storage errors, and before a verdict of damage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from stormproof.errors import DamagedError

T = TypeVar("T")
READ_RETRY_DELAYS = (0.1, 0.5)
"""Delays before the second and the third attempt, in seconds."""
MISSING_DELAY_SECONDS = 0.1
PERMANENT_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors of the file system that a retry cannot cure."""


def retry_read(read: Callable[[], T]) -> T:
    """Returns ``read()``. Retries after 0.1 s and 0.5 s if it raises an OSError.

    Raises:
        OSError: If all three calls fail. Errors in :data:`PERMANENT_ERRORS` are raised without a retry.

    Example:
        >>> retry_read(lambda: 1)
        1
    """
    for delay in READ_RETRY_DELAYS:
        try:
            return read()
        except PERMANENT_ERRORS:
            raise
        except OSError:
            time.sleep(delay)
    return read()


def confirm_damage(find: Callable[[], str | None]) -> str | None:
    """Returns the problem that ``find`` returns, if a second call finds one, too. None if one call finds none.

    A single read may be wrong: a flipped bit on the way, or a stale cache of a network file system.
    """
    problem = None
    for delay in (MISSING_DELAY_SECONDS, 0.0):
        try:
            problem = find()
        except FileNotFoundError:
            problem = "its file is missing"
            time.sleep(delay)
        if problem is None:
            return None
    return problem


def read_twice(read: Callable[[], T], damage: type[Exception] = DamagedError) -> T:
    """Returns ``read()``. Repeats it once if it raises ``damage``, because a single read may be wrong."""
    try:
        return read()
    except damage:
        return read()
