"""A place in the passes that were made over a loader."""

from __future__ import annotations

from dataclasses import dataclass

from stormproof.data.rng import State
from stormproof.data.source import Position


@dataclass(frozen=True, slots=True)
class Pass:
    """One ``for`` loop over the loader; ``after`` is where the one before it was left."""

    epoch: int
    start: State
    length: int | None
    after: Place | None = None


@dataclass(frozen=True, slots=True)
class LoadedPosition:
    """A position that was loaded."""

    state: State

    def plain(self, again: int) -> State:
        """The same, to ask for ``again`` batches more."""
        return {**self.state, "again": self.state["again"] + again}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a pass: ``batches`` of it were handed out; ``ended`` once there was no more.

    Attributes:
        here: where the source is.
        before: where it was before the last batch. It is resumed from there, and asked for that batch again: what a
            source says at the end of a pass, or when the next has hardly begun, need not tell how that one goes on.
    """

    of: Pass
    batches: int
    here: Position | None = None
    before: Position | None = None
    ended: bool = False

    @property
    def whole(self) -> bool:
        """Whether the pass is over."""
        return self.ended or self.batches == self.of.length
