"""How long each batch is waited for, and how long it is worked on."""

from __future__ import annotations

import time
from collections import deque

BATCHES = 200
"""The last ones that are remembered."""


class Waiting:
    """Clocks batches; those behind something else than a batch are left out.

    Attributes:
        batches: the seconds of waiting and of work of the last ones.
    """

    def __init__(self) -> None:
        self.batches: deque[tuple[float, float]] = deque(maxlen=BATCHES)
        self._mark = self._wait = 0.0
        self._counts = False

    def begin_anew(self) -> None:
        """Something else was done before the batch that comes."""
        self._counts = False

    def batch_comes(self) -> None:
        """It is here."""
        self._wait = time.perf_counter() - self._mark

    def batch_ends(self, *, counts: bool) -> None:
        """Its step is done; ``counts`` if nothing but that was."""
        if self._counts and counts:
            self.batches.append((self._wait, max(time.perf_counter() - self._mark - self._wait, 0.0)))

    def next_begins(self) -> None:
        """From now on the next one is waited for."""
        self._mark, self._counts = time.perf_counter(), True
