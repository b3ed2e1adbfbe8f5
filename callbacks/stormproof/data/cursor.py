"""A place in the passes that were made over a loader."""

from __future__ import annotations

from dataclasses import dataclass

from stormproof.data.rng import State
from stormproof.data.source import Position


@dataclass(frozen=True, slots=True)
class Epoch:
    """One ``for`` loop over the loader; ``previous_cursor`` is where the one before it was left."""

    index: int
    start_state: State
    length: int | None
    previous_cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class SavedPosition:
    """A position that was loaded."""

    state: State

    def to_state(self, num_refetched: int) -> State:
        """The same, to ask for ``num_refetched`` batches more."""
        return {**self.state, "again": self.state["again"] + num_refetched}


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a pass: ``batches_yielded`` of it were handed out; ``is_exhausted`` once there was no more.

    Attributes:
        position: where the source is.
        previous_position: where it was before the last batch. It is resumed from there, and asked for that batch again:
            what a source says at the end of a pass, or when the next has hardly begun, need not tell how that one goes
            on.
    """

    epoch: Epoch
    batches_yielded: int
    position: Position | None = None
    previous_position: Position | None = None
    is_exhausted: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether the pass is over."""
        return self.is_exhausted or self.batches_yielded == self.epoch.length
