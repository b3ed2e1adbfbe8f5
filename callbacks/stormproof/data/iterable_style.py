"""Loaders whose order nobody but themselves knows: iterable data sets, and loaders with a state of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from stormproof.data.replicas import replica
from stormproof.data.stand_in import StandIn
from stormproof.rng import Isolated, State, seed


class SeededStream(StandIn, IterableDataset):
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

    def plain(self) -> State:
        return {"owner": self.owner, "stream": self.stream.state_dict()}


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
        self._stream: Isolated | None = None
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
        if self._stateful is None or self._stream is None:
            return None
        with copy.copy(self._stream):  # some loaders draw a number when they are asked
            owner = copy.deepcopy(self._stateful.state_dict())
        return _Position(owner, copy.copy(self._stream))

    def restore(self, start: State, position: State | None) -> None:
        """Goes back to ``position``; workers begin anew."""
        self.inner = self._make()
        self._resumed = position

    def open(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of a pass from the ``skip``-th on; draws nothing from the process' generators."""
        resumed, self._resumed = self._resumed, None
        stream = Isolated(seed, epoch)
        if isinstance(getattr(self.inner, "dataset", None), SeededStream):
            self.inner.dataset.next_pass(seed, epoch)
        with stream:
            if resumed is not None:
                self._stateful.load_state_dict(resumed["owner"])
            batches = iter(self.inner)
        if resumed is not None:
            stream.load_state_dict(resumed["stream"])
        else:
            with stream:
                next(islice(batches, skip, skip), None)
        self._stream = stream
        return _within(stream, batches) if self._isolated else batches

    def settle(self, seed: int, epoch: int, start: State, taken: int | None) -> None:
        """Goes on from the end of a pass to the next, where one was resumed."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        with Isolated(seed, epoch):
            self._stateful.load_state_dict(resumed["owner"])
            if taken is not None and self._stateful is self.inner:
                iter(self.inner)  # the pass that was left; the next call begins another


def _within(stream: Isolated, batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with stream:
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch
