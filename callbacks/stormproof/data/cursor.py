"""Position of a loader in its epochs."""

from __future__ import annotations

from dataclasses import dataclass

from stormproof.data.rng import State
from stormproof.data.source import Position


@dataclass(frozen=True, slots=True)
class Epoch:
    """One ``for`` loop over the loader.

    Attributes:
        index: Number of the epoch, from 0.
        start_state: State of the source at its beginning.
        length: Number of batches. None if unknown.
        previous_cursor: Last position in the previous epoch. None in the first epoch.
    """

    index: int
    start_state: State
    length: int | None
    previous_cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class SavedPosition:
    """Position from a loaded state."""

    state: State

    def to_state(self, num_refetched: int) -> State:
        """Returns the state for a resume that first fetches ``num_refetched`` more batches again."""
        return {**self.state, "num_refetched": self.state["num_refetched"] + num_refetched}


@dataclass(frozen=True, slots=True)
class Cursor:
    """Position in an epoch.

    Attributes:
        epoch: The epoch.
        batches_yielded: Number of batches yielded so far.
        position: Position of the source.
        previous_position: Position of the source before the last batch. A resume starts there and fetches that batch
            again, because the position at the end of an epoch may not determine how the next one continues.
        is_exhausted: Whether the source has no more batches.
    """

    epoch: Epoch
    batches_yielded: int
    position: Position | None = None
    previous_position: Position | None = None
    is_exhausted: bool = False

    @property
    def is_complete(self) -> bool:
        """True if the epoch is complete."""
        return self.is_exhausted or self.batches_yielded == self.epoch.length
