"""The order of a map-style loader's batches: the user's own samplers, made repeatable."""

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
"""Batches taken from the sampler at once: entering its random stream costs as much as some hundred numbers."""

ORDER_STREAM_KEY = 0x6F72646572
"""Keeps the stream of a pass' order apart from those of its samples."""


class BatchOrder:
    """What ``loader`` would fetch in a pass, as a function of (seed, epoch) and the state of its samplers.

    The samplers run in a random stream of their own. On several ranks the order is divided among them, unless a
    sampler already does so itself (it has ``rank`` and ``num_replicas``) or ``distributed`` is False: rank r of W takes
    every W-th index beginning with the r-th, and the order is filled up from its beginning until W divides it; where
    the batches are made by a batch sampler of the user's, every W-th batch. Without ``padded`` nothing is filled up:
    the ranks have as many batches, the last ones of some have a sample less, and where a batch is one sample the last
    of some have two.

    Args:
        loader: a map-style DataLoader.
        distributed: whether to divide the order among the ranks.
        padded: whether to give all ranks as many samples, some of them twice.

    Raises:
        ValueError: if ``padded`` is False, and the loader has a batch sampler of its own, or a sampler that divides.
    """

    def __init__(self, loader: DataLoader[Any], distributed: bool, padded: bool = True) -> None:
        self._loader = loader
        self._sampler_state = SamplerState(loader)
        self._distributed = distributed
        self._padded = padded
        if not padded and type(loader.batch_sampler) is not BatchSampler:
            raise ValueError(
                "padded=False sizes the batches itself: give the loader a batch_size, and no batch sampler of its own"
            )
        if not padded and self._sampler_state.replica() is not None:
            raise ValueError("padded=False divides the data, and the loader's sampler does so already: leave that out")
        self._exhausted_epoch: int | None = None  # the epoch whose samplers have been asked to their end

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
        """How many processes share a pass."""
        return self._get_replica().world_size

    def capture_start_state(self) -> State:
        """The state of the samplers, as a pass finds it."""
        return self._sampler_state.capture()

    def restore(self, start_state: State) -> None:
        """Puts the samplers into the state that :meth:`capture_start_state` gave."""
        self._sampler_state.restore(start_state)
        self._exhausted_epoch = None

    def iterate(self, seed: int, epoch: int, skip: int = 0) -> Iterator[SeededIndices]:
        """The batches of pass ``epoch`` without its first ``skip``; the samplers are asked as they are needed."""
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
        """Leaves the samplers as a pass leaves them whose first ``batches_taken`` batches were asked for; None: all.

        How far ahead of that a loader asked for its workers must not show in the passes after it.
        """
        if (batches_taken is None and self._exhausted_epoch == epoch) or not self._sampler_state.has_state:
            return
        self._sampler_state.restore(start_state)
        with RandomStream(seed, epoch, ORDER_STREAM_KEY):
            _discard(self._begin_epoch(seed, epoch), batches_taken)

    def _begin_epoch(self, seed: int, epoch: int) -> Iterator[SeededIndices]:
        self._sampler_state.set_epoch(epoch)
        if self._loader.generator is not None:  # torch's loader does so first of all, for the seed of its workers
            torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
        return self._iterate_shard((seed, epoch))

    def _iterate_shard(self, seed_key: tuple[int, int]) -> Iterator[SeededIndices]:
        """This rank's batches, each with its place in the pass of all ranks."""
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
        """How many samples each of this rank's batches has where nothing is filled up.

        All ranks have as many batches, none of them empty: collectives in a forward pass, as of buffers, would else
        wait for a rank that has ended.
        """
        num_samples, batch_size = len(self._index_sampler), self._loader.batch_size or 1
        if num_samples < shard.world_size:
            raise ValueError(
                f"{shard.world_size} ranks share {num_samples} samples, and each needs one: take fewer ranks, or more "
                f"data"
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
        """The rank whose part this is, and of how many: by a sampler that divides the order itself, else by torch."""
        return self._sampler_state.replica() or current_replica()

    def _get_split_replica(self) -> Replica:
        """Which part of the samplers' order to take."""
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
    """``items`` in groups of ``group_size``; the last is filled up from the first.

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
    """``items`` in lists of ``batch_size``; the last may be shorter, unless it is to be dropped.

    Example:
        >>> list(_batch_items(iter("abc"), 2, drop_last=False))
        [['a', 'b'], ['c']]
    """
    while batch := list(islice(items, batch_size)):
        if len(batch) == batch_size or not drop_last:
            yield batch


def _discard(items: Iterator[Any], count: int | None) -> None:
    deque(islice(items, count), maxlen=0)
