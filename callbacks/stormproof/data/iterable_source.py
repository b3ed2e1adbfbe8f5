"""Epochs of iterable data sets and of stateful loaders, whose order is not known in advance."""

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
    """Iterable data set that seeds the generators of a worker by (seed, epoch, worker) before each epoch.

    A persistent worker counts the epochs itself, because it is not notified of the next one.
    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__(wrapped)
        self.set_next_epoch(0, 0)

    def set_next_epoch(self, seed: int, epoch: int) -> None:
        """Sets the epoch with which the workers start."""
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
        return {"owner": self.owner_state, "stream": self.stream.state_dict(), "num_refetched": num_refetched}


class IterableSource:
    """Epochs that use a separate random stream and are resumed by a ``state_dict`` or by repetition.

    Args:
        make_loader: Returns the loader to iterate. Called again after a restore, because old workers are too far ahead.
        state_owner: Data set or loader whose ``state_dict`` contains the position. If None, a resume repeats the epoch
            and discards its first batches, which is exact if the epoch depends on random numbers only.
        isolate_rng: Whether fetching a batch may draw from the generators of this process.
    """

    def __init__(self, make_loader: Callable[[], Any], state_owner: Any, isolate_rng: bool) -> None:
        self._make_loader = make_loader
        self.inner_loader = make_loader()
        self._state_owner = state_owner
        self._isolate_rng = isolate_rng
        self._position: _IterablePosition | None = None
        self._batches: Iterator[Any] | None = None  # the current epoch, with a state owner
        self._restored_position: State | None = None

    def __len__(self) -> int:
        return len(self.inner_loader)

    def world_size(self) -> int:
        """Returns the number of processes. The data set must choose the part of each process itself."""
        return current_replica().world_size

    def capture_start_state(self) -> State:
        """Returns an empty state, because :meth:`position` contains it."""
        return {}

    def position(self) -> _IterablePosition | None:
        """Returns the states of the state owner and the random stream. None without a state owner."""
        return self._position

    def restore(self, start_state: State, position: State | None) -> None:
        """Resumes the next epoch from ``position``, with new workers."""
        self.inner_loader = self._make_loader()
        self._batches = None
        self._restored_position = position

    def iterate(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """Returns the batches of an epoch without the first ``skip``. Preserves the generators of the process.

        After :meth:`restore` with a position, it begins there and skips the refetched batches.
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
            skip = restored_position["num_refetched"]
        self._position = _IterablePosition(owner_state, copy.copy(stream))
        self._batches = self._track_position(stream, batches)
        next(islice(self._batches, skip, skip), None)
        return self._batches

    def _track_position(self, stream: RandomStream, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields the batches and records the position after each. ``state_dict`` may draw from the random stream."""
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
        """Sets the state owner to its state after the epoch. None for ``batches_taken`` means the whole epoch."""
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
