"""Reads again where storage fails for a moment, as network file systems do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
READ_AGAIN_AFTER_SECONDS = (0.1, 0.5)


def read_again(read: Callable[[], T]) -> T:
    """Returns ``read()``. Calls it again after 0.1 s and 0.5 s if it raises an OSError.

    Raises:
        FileNotFoundError: At once.
        OSError: If all three calls fail.

    Example:
        >>> read_again(lambda: 1)
        1
    """
    for seconds in READ_AGAIN_AFTER_SECONDS:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(seconds)
    return read()
