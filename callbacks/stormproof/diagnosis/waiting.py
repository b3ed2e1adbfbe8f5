"""How long each batch is waited for, and how long it is worked on."""

from __future__ import annotations

import time
from collections import deque

from stormproof.diagnosis.own_time import OwnTime

BATCHES = 200
"""The last ones that are remembered."""


class Waiting:
    """Clocks batches, from the fetching of each to that of the next; what is left out is not remembered.

    Args:
        own: is told of those that are remembered.

    Attributes:
        batches: the seconds of waiting and of work of the last ones.
    """

    def __init__(self, own: OwnTime | None = None) -> None:
        self.batches: deque[tuple[float, float]] = deque(maxlen=BATCHES)
        self._mark = self._wait = 0.0
        self._counts = False
        self._own = own

    def fetch_begins(self) -> None:
        """The batch before is done, other callbacks' part of it too, and the next one is waited for."""
        now = time.perf_counter()
        if self._counts:
            self.batches.append((self._wait, now - self._mark - self._wait))
            if self._own is not None:
                self._own.keep(self._wait)
        self._mark, self._counts = now, False

    def batch_comes(self) -> None:
        """It is here."""
        self._wait, self._counts = time.perf_counter() - self._mark, self._mark > 0

    def leave_out(self) -> None:
        """Something else was done with the batch than training on it."""
        self._counts = False
