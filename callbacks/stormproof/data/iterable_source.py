"""Loaders whose order nobody but themselves knows: iterable data sets, and loaders with a state of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from stormproof.data.dataset_proxy import DatasetProxy
from stormproof.data.rng import RandomStream, State, seed_process
from stormproof.data.shard import current_replica


class SeededIterableDataset(DatasetProxy, IterableDataset[Any]):
    """An iterable data set that begins each pass in a worker with generators seeded by (seed, epoch, worker).

    A worker that outlives a pass is not told which one comes next: it counts.
    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__(wrapped)
        self.set_next_epoch(0, 0)

    def set_next_epoch(self, seed: int, epoch: int) -> None:
        """Sets the epoch that the workers start with."""
        self._set_own_attribute("_epoch_arguments", (seed, epoch))

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            base_seed, epoch = self._epoch_arguments
            seed_process(base_seed, epoch, worker.id)
            self.set_next_epoch(base_seed, epoch + 1)
        return iter(self.wrapped)


@dataclass(frozen=True, slots=True)
class _IterablePosition:
    owner_state: State
    stream: RandomStream

    def to_state(self, num_refetched: int) -> State:
        return {"owner": self.owner_state, "stream": self.stream.state_dict(), "again": num_refetched}


class IterableSource:
    """Passes that run in a random stream of their own, and are resumed by a state or by running them again.

    Args:
        make_loader: gives the loader to iterate; asked again when the workers of the first have gone on too far.
        state_owner: the data set or loader whose ``state_dict`` says where a pass is; None if a pass is to be run again
            and its first batches thrown away, which is exact if it depends on nothing but random numbers.
        isolate_rng: whether fetching a batch may draw from this process' generators.
    """

    def __init__(self, make_loader: Callable[[], Any], state_owner: Any, isolate_rng: bool) -> None:
        self._make_loader = make_loader
        self.inner_loader = make_loader()
        self._state_owner = state_owner
        self._isolate_rng = isolate_rng
        self._position: _IterablePosition | None = None
        self._batches: Iterator[Any] | None = None  # the pass that was begun last, of what has a state
        self._restored_position: State | None = None

    def __len__(self) -> int:
        return len(self.inner_loader)

    def world_size(self) -> int:
        """How many processes iterate, each a part that the data set must choose itself."""
        return current_replica().world_size

    def capture_start_state(self) -> State:
        """Nothing: what a pass finds is part of :meth:`position`."""
        return {}

    def position(self) -> _IterablePosition | None:
        """The state of the data set or loader and of the random stream; None if the count of batches must do."""
        return self._position

    def restore(self, start_state: State, position: State | None) -> None:
        """The next pass goes on from ``position``; workers begin anew."""
        self.inner_loader = self._make_loader()
        self._batches = None
        self._restored_position = position

    def iterate(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of a pass from the ``skip``-th on; draws nothing from the process' generators.

        After :meth:`restore` with a position it begins there, and skips what it was told to ask for again.
        """
        restored_position, self._restored_position = self._restored_position, None
        stream = RandomStream(seed, epoch)
        if isinstance(getattr(self.inner_loader, "dataset", None), SeededIterableDataset):
            self.inner_loader.dataset.set_next_epoch(seed, epoch)
        with stream:
            if restored_position is not None:
                self._state_owner.load_state_dict(restored_position["owner"])
            batches = iter(self.inner_loader)
            if self._state_owner is None:
                next(islice(batches, skip, skip), None)
            owner_state = self._capture_owner_state()
        if self._state_owner is None:
            return _iterate_in_stream(stream, batches) if self._isolate_rng else batches
        if restored_position is not None:
            stream.load_state_dict(restored_position["stream"])
            skip = restored_position["again"]
        self._position = _IterablePosition(owner_state, copy.copy(stream))
        self._batches = self._track_position(stream, batches)
        next(islice(self._batches, skip, skip), None)
        return self._batches

    def _track_position(self, stream: RandomStream, batches: Iterator[Any]) -> Iterator[Any]:
        """``batches``, and where each leaves what has a state: asked in the stream, for it may draw to answer."""
        while True:
            with stream if self._isolate_rng else nullcontext():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                owner_state = self._capture_owner_state()
            self._position = _IterablePosition(owner_state, copy.copy(stream))
            yield batch

    def _capture_owner_state(self) -> Any:
        return None if self._state_owner is None else copy.deepcopy(self._state_owner.state_dict())

    def finish_epoch(self, seed: int, epoch: int, start_state: State, batches_taken: int | None) -> None:
        """Leaves what has a state as a pass leaves it that was broken off, or asked for more than there was."""
        batches = self._batches if self._restored_position is None else self.iterate(seed, epoch, 0)
        if batches_taken is None and batches is not None:
            next(batches, None)


def _iterate_in_stream(stream: RandomStream, batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with stream:
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch
