"""Repeatable order of the batches of a map-style loader, from the user's own samplers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from math import ceil, inf
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from stormproof.data.rng import RandomStream, State
from stormproof.data.sample_seeds import SeededIndices
from stormproof.data.sampler_state import SamplerState
from stormproof.data.shard import Replica, current_replica

CHUNK_SIZE = 16
"""Batches taken from the sampler at once, because entering its random stream takes as long as drawing some hundred
numbers."""

ORDER_STREAM_KEY = 0x6F72646572
"""Separates the random stream of the order from the random streams of the samples."""


class BatchOrder:
    """Batches of an epoch of ``loader``, as a function of (seed, epoch) and the state of its samplers.

    The samplers draw from a separate random stream. The order is divided among the ranks, unless ``distributed`` is
    False or a sampler has ``rank`` and ``num_replicas`` and divides it itself. Rank r of W takes every W-th index from
    the r-th on, or every W-th batch of a custom batch sampler.

    With ``padded``, the order is repeated from its beginning until W divides it. Without ``padded``, all ranks have the
    same number of batches, but the last batches of some ranks have one sample less. With batches of one sample, the
    last batches of some ranks have two.

    Args:
        loader: Map-style DataLoader.
        distributed: Whether to divide the order among the ranks.
        padded: Whether all ranks get the same number of samples, some of them twice.

    Raises:
        ValueError: If ``padded`` is False and the loader has a custom batch sampler or a sampler that divides the data.
    """

    def __init__(self, loader: DataLoader[Any], distributed: bool, padded: bool = True) -> None:
        self._loader = loader
        self._sampler_state = SamplerState(loader)
        self._distributed = distributed
        self._padded = padded
        if not padded and type(loader.batch_sampler) is not BatchSampler:
            raise ValueError(
                "`padded=False` requires torch's default batch sampler. Pass an integer `batch_size` to the loader."
            )
        if not padded and self._sampler_state.replica() is not None:
            raise ValueError(
                "`padded=False` does not support a sampler that divides the data among ranks. Remove the sampler."
            )
        self._exhausted_epoch: int | None = None  # epoch whose samplers have been iterated to the end

    def __len__(self) -> int:
        shard = self._get_split_replica()
        if shard.world_size == 1:
            return len(self._sampler)
        if not self._is_split_by_index:
            return ceil(len(self._sampler) / shard.world_size)
        num_samples, batch_size = ceil(len(self._index_sampler) / shard.world_size), self._loader.batch_size
        if not self._padded:
            return len(self._compute_batch_sizes(shard))
        if batch_size is None:
            return num_samples
        return num_samples // batch_size if self._loader.drop_last else ceil(num_samples / batch_size)

    def world_size(self) -> int:
        """Returns the number of processes that share an epoch."""
        return self._get_replica().world_size

    def capture_start_state(self) -> State:
        """Returns the state of the samplers. Call it before an epoch."""
        return self._sampler_state.capture()

    def restore(self, start_state: State) -> None:
        """Restores the samplers to a state from :meth:`capture_start_state`."""
        self._sampler_state.restore(start_state)
        self._exhausted_epoch = None

    def iterate(self, seed: int, epoch: int, skip: int = 0) -> Iterator[SeededIndices]:
        """Yields the batches of an epoch without the first ``skip``. Iterates the samplers lazily."""
        stream = RandomStream(seed, epoch, ORDER_STREAM_KEY)
        with stream:
            batches = self._begin_epoch(seed, epoch)
            _discard(batches, skip)
        while True:
            with stream:
                chunk = list(islice(batches, CHUNK_SIZE))
            if len(chunk) < CHUNK_SIZE:
                self._exhausted_epoch = epoch
            yield from chunk
            if len(chunk) < CHUNK_SIZE:
                return

    def finish_epoch(self, seed: int, epoch: int, start_state: State, batches_taken: int | None) -> None:
        """Sets the samplers to their state after ``batches_taken`` batches, or after the whole epoch if None.

        A loader prefetches for its workers, which must not affect later epochs.
        """
        if (batches_taken is None and self._exhausted_epoch == epoch) or not self._sampler_state.has_state:
            return
        self._sampler_state.restore(start_state)
        with RandomStream(seed, epoch, ORDER_STREAM_KEY):
            _discard(self._begin_epoch(seed, epoch), batches_taken)

    def _begin_epoch(self, seed: int, epoch: int) -> Iterator[SeededIndices]:
        self._sampler_state.set_epoch(epoch)
        if self._loader.generator is not None:  # like torch's loader, which first draws the seed of its workers
            torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
        return self._iterate_shard((seed, epoch))

    def _iterate_shard(self, seed_key: tuple[int, int]) -> Iterator[SeededIndices]:
        """Yields this rank's batches with their positions in the epoch of all ranks."""
        shard = self._get_split_replica()
        if shard.world_size > 1 and not self._is_split_by_index:
            yield from _iterate_whole_batches(seed_key, self._sampler, shard)
            return
        batches: Iterable[Any] = self._sampler
        if shard.world_size > 1 and self._padded:
            shard_indices = (group[shard.rank] for group in _group_padded(self._index_sampler, shard.world_size))
            batch_size = self._loader.batch_size
            batches = (
                shard_indices if batch_size is None else _batch_items(shard_indices, batch_size, self._loader.drop_last)
            )
        elif shard.world_size > 1:
            shard_indices = islice(self._index_sampler, shard.rank, None, shard.world_size)
            batches = (list(islice(shard_indices, batch_size)) for batch_size in self._compute_batch_sizes(shard))
        rank, stride = self._get_replica()
        count = 0
        for batch in batches:
            yield SeededIndices(seed_key, count * stride + rank, stride, batch)
            count += self._count_samples(batch)

    def _compute_batch_sizes(self, shard: Replica) -> list[int]:
        """Returns the sizes of this rank's batches without padding.

        All ranks have the same number of batches, and none is empty. Otherwise, collectives in a forward pass, for
        example of buffers, would wait for a rank that has finished.
        """
        num_samples, batch_size = len(self._index_sampler), self._loader.batch_size or 1
        if num_samples < shard.world_size:
            raise ValueError(
                f"{num_samples} samples are too few for {shard.world_size} ranks, which need one each. Use fewer ranks "
                "or more data."
            )
        if self._loader.drop_last:
            return [batch_size] * (num_samples // (batch_size * shard.world_size))
        remaining_samples = len(range(shard.rank, num_samples, shard.world_size))
        num_batches = min(ceil(num_samples / (batch_size * shard.world_size)), num_samples // shard.world_size)
        batch_sizes = []
        for later_batches in reversed(range(num_batches)):
            batch_sizes.append(min(batch_size if later_batches else inf, remaining_samples - later_batches))
            remaining_samples -= batch_sizes[-1]
        return batch_sizes

    @property
    def _sampler(self) -> Any:
        return self._loader.sampler if self._loader.batch_sampler is None else self._loader.batch_sampler

    @property
    def _index_sampler(self) -> Any:
        return getattr(self._loader.batch_sampler, "sampler", self._loader.sampler)

    @property
    def _is_split_by_index(self) -> bool:
        return self._loader.batch_sampler is None or type(self._loader.batch_sampler) is BatchSampler

    def _count_samples(self, batch: Any) -> int:
        return len(batch) if self._loader.batch_sampler is not None and hasattr(batch, "__len__") else 1

    def _get_replica(self) -> Replica:
        """Returns rank and world size, from a sampler that divides the order or otherwise from torch."""
        return self._sampler_state.replica() or current_replica()

    def _get_split_replica(self) -> Replica:
        """Returns the part of the samplers' order to take."""
        return current_replica() if self._distributed and self._sampler_state.replica() is None else Replica(0, 1)


def _iterate_whole_batches(
    seed_key: tuple[int, int], batches: Iterable[Any], shard: Replica
) -> Iterator[SeededIndices]:
    first_position = 0
    for group in _group_padded(batches, shard.world_size):
        sizes = [len(batch) for batch in group]
        yield SeededIndices(seed_key, first_position + sum(sizes[: shard.rank]), 1, group[shard.rank])
        first_position += sum(sizes)


def _group_padded(items: Iterable[Any], group_size: int) -> Iterator[list[Any]]:
    """Yields groups of ``group_size`` items. The last group is padded with items of the first one.

    Example:
        >>> list(_group_padded("abcde", 3))
        [['a', 'b', 'c'], ['d', 'e', 'a']]
    """
    iterator = iter(items)
    first_group: list[Any] = []
    while group := list(islice(iterator, group_size)):
        first_group = first_group or group
        yield group + list(islice(cycle(first_group), group_size - len(group)))


def _batch_items(items: Iterator[Any], batch_size: int, drop_last: bool) -> Iterator[list[Any]]:
    """Yields lists of ``batch_size`` items. The last may be shorter unless ``drop_last``.

    Example:
        >>> list(_batch_items(iter("abc"), 2, drop_last=False))
        [['a', 'b'], ['c']]
    """
    while batch := list(islice(items, batch_size)):
        if len(batch) == batch_size or not drop_last:
            yield batch


def _discard(items: Iterator[Any], count: int | None) -> None:
    deque(islice(items, count), maxlen=0)
