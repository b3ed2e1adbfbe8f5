"""Times of the training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Times of a run.

    Attributes:
        batch_waits: Seconds of waiting and of work of the last batches.
        loader_name: Class name of the training loader.
        num_workers: Number of worker processes of the loader. None if it is not a torch ``DataLoader``.
    """

    batch_waits: Sequence[tuple[float, float]] = ()
    loader_name: str = "DataLoader"
    num_workers: int | None = 0
