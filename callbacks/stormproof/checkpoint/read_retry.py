"""Retries reads after transient storage errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
READ_RETRY_DELAYS = (0.1, 0.5)
"""Delays before the second and the third attempt, in seconds."""


def retry_read(read: Callable[[], T]) -> T:
    """Returns ``read()``. Retries after 0.1 s and 0.5 s if it raises an OSError.

    Raises:
        FileNotFoundError: Immediately, without a retry.
        OSError: If all three calls fail.

    Example:
        >>> retry_read(lambda: 1)
        1
    """
    for delay in READ_RETRY_DELAYS:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(delay)
    return read()
