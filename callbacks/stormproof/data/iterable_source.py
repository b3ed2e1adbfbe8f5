"""Loaders whose order nobody but themselves knows: iterable data sets, and loaders with a state of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from stormproof.data.dataset_proxy import StandIn
from stormproof.data.rng import Isolated, State, seed
from stormproof.data.shard import replica


class SeededStream(StandIn, IterableDataset[Any]):
    """An iterable data set that begins each pass in a worker with generators seeded by (seed, epoch, worker).

    A worker that outlives a pass is not told which one comes next: it counts.
    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__(wrapped)
        self.next_pass(0, 0)

    def next_pass(self, seed: int, epoch: int) -> None:
        """Names the pass that the workers begin with."""
        self._keep("_pass", (seed, epoch))

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            number, epoch = self._pass
            seed(number, epoch, worker.id)
            self.next_pass(number, epoch + 1)
        return iter(self.wrapped)


@dataclass(frozen=True, slots=True)
class _Position:
    owner: State
    stream: Isolated

    def plain(self, again: int) -> State:
        return {"owner": self.owner, "stream": self.stream.state_dict(), "again": again}


class IterableStyle:
    """Passes that run in a random stream of their own, and are resumed by a state or by running them again.

    Args:
        make: gives the loader to iterate; asked again when the workers of the first have gone on too far.
        stateful: the data set or loader whose ``state_dict`` says where a pass is; None if a pass is to be run again
            and its first batches thrown away, which is exact if it depends on nothing but random numbers.
        isolated: whether fetching a batch may draw from this process' generators.
    """

    def __init__(self, make: Callable[[], Any], stateful: Any, isolated: bool) -> None:
        self._make = make
        self.inner = make()
        self._stateful = stateful
        self._isolated = isolated
        self._position: _Position | None = None
        self._opened: Iterator[Any] | None = None  # the pass that was begun last, of what has a state
        self._resumed: State | None = None

    def __len__(self) -> int:
        return len(self.inner)

    def world_size(self) -> int:
        """How many processes iterate, each a part that the data set must choose itself."""
        return replica().world_size

    def start(self) -> State:
        """Nothing: what a pass finds is part of :meth:`position`."""
        return {}

    def position(self) -> _Position | None:
        """The state of the data set or loader and of the random stream; None if the count of batches must do."""
        return self._position

    def restore(self, start: State, position: State | None) -> None:
        """The next pass goes on from ``position``; workers begin anew."""
        self.inner = self._make()
        self._opened = None
        self._resumed = position

    def open(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of a pass from the ``skip``-th on; draws nothing from the process' generators.

        After :meth:`restore` with a position it begins there, and skips what it was told to ask for again.
        """
        resumed, self._resumed = self._resumed, None
        stream = Isolated(seed, epoch)
        if isinstance(getattr(self.inner, "dataset", None), SeededStream):
            self.inner.dataset.next_pass(seed, epoch)
        with stream:
            if resumed is not None:
                self._stateful.load_state_dict(resumed["owner"])
            batches = iter(self.inner)
            if self._stateful is None:
                next(islice(batches, skip, skip), None)
            owner = self._owner()
        if self._stateful is None:
            return _within(stream, batches) if self._isolated else batches
        if resumed is not None:
            stream.load_state_dict(resumed["stream"])
            skip = resumed["again"]
        self._position = _Position(owner, copy.copy(stream))
        self._opened = self._followed(stream, batches)
        next(islice(self._opened, skip, skip), None)
        return self._opened

    def _followed(self, stream: Isolated, batches: Iterator[Any]) -> Iterator[Any]:
        """``batches``, and where each leaves what has a state: asked in the stream, for it may draw to answer."""
        while True:
            with stream if self._isolated else nullcontext():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                owner = self._owner()
            self._position = _Position(owner, copy.copy(stream))
            yield batch

    def _owner(self) -> Any:
        return None if self._stateful is None else copy.deepcopy(self._stateful.state_dict())

    def settle(self, seed: int, epoch: int, start: State, taken: int | None) -> None:
        """Leaves what has a state as a pass leaves it that was broken off, or asked for more than there was."""
        batches = self._opened if self._resumed is None else self.open(seed, epoch, 0)
        if taken is None and batches is not None:
            next(batches, None)


def _within(stream: Isolated, batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with stream:
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch
