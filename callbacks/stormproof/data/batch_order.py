"""The order of a map-style loader's batches: the user's own samplers, made repeatable."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from math import ceil, inf
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from stormproof.data.rng import Isolated, State
from stormproof.data.sample_seeds import Picked
from stormproof.data.sampler_state import SamplerState
from stormproof.data.shard import Replica, replica

CHUNK = 16
"""Batches taken from the sampler at once: entering its random stream costs as much as some hundred numbers."""

ORDER = 0x6F72646572
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
        self._samplers = SamplerState(loader)
        self._distributed = distributed
        self._padded = padded
        if not padded and type(loader.batch_sampler) is not BatchSampler:
            raise ValueError(
                "padded=False sizes the batches itself: give the loader a batch_size, and no batch sampler of its own"
            )
        if not padded and self._samplers.replica() is not None:
            raise ValueError("padded=False divides the data, and the loader's sampler does so already: leave that out")
        self._whole: int | None = None  # the epoch whose samplers have been asked to their end

    def __len__(self) -> int:
        part = self._part()
        if part.world_size == 1:
            return len(self._sampler)
        if not self._by_index:
            return ceil(len(self._sampler) / part.world_size)
        samples, size = ceil(len(self._indices) / part.world_size), self._loader.batch_size
        if not self._padded:
            return len(self._shares(part))
        if size is None:
            return samples
        return samples // size if self._loader.drop_last else ceil(samples / size)

    def world_size(self) -> int:
        """How many processes share a pass."""
        return self._replica().world_size

    def start(self) -> State:
        """The state of the samplers, as a pass finds it."""
        return self._samplers.capture()

    def restore(self, start: State) -> None:
        """Puts the samplers into the state that :meth:`start` gave."""
        self._samplers.restore(start)
        self._whole = None

    def batches(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Picked]:
        """The batches of pass ``epoch`` without its first ``skip``; the samplers are asked as they are needed."""
        stream = Isolated(seed, epoch, ORDER)
        with stream:
            order = self._begun(seed, epoch)
            _discard(order, skip)
        while True:
            with stream:
                chunk = list(islice(order, CHUNK))
            if len(chunk) < CHUNK:
                self._whole = epoch
            yield from chunk
            if len(chunk) < CHUNK:
                return

    def settle(self, seed: int, epoch: int, start: State, taken: int | None) -> None:
        """Leaves the samplers as a pass leaves them whose first ``taken`` batches were asked for; None: all.

        How far ahead of that a loader asked for its workers must not show in the passes after it.
        """
        if (taken is None and self._whole == epoch) or not self._samplers.remember:
            return
        self._samplers.restore(start)
        with Isolated(seed, epoch, ORDER):
            _discard(self._begun(seed, epoch), taken)

    def _begun(self, seed: int, epoch: int) -> Iterator[Picked]:
        self._samplers.set_epoch(epoch)
        if self._loader.generator is not None:  # torch's loader does so first of all, for the seed of its workers
            torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
        return self._placed((seed, epoch))

    def _placed(self, key: tuple[int, int]) -> Iterator[Picked]:
        """This rank's batches, each with its place in the pass of all ranks."""
        part = self._part()
        if part.world_size > 1 and not self._by_index:
            yield from _placed_whole(key, self._sampler, part)
            return
        batches: Iterable[Any] = self._sampler
        if part.world_size > 1 and self._padded:
            mine = (group[part.rank] for group in _groups(self._indices, part.world_size))
            size = self._loader.batch_size
            batches = mine if size is None else _batched(mine, size, self._loader.drop_last)
        elif part.world_size > 1:
            mine = islice(self._indices, part.rank, None, part.world_size)
            batches = (list(islice(mine, size)) for size in self._shares(part))
        rank, stride = self._replica()
        count = 0
        for batch in batches:
            yield Picked(key, count * stride + rank, stride, batch)
            count += self._size(batch)

    def _shares(self, part: Replica) -> list[int]:
        """How many samples each of this rank's batches has where nothing is filled up.

        All ranks have as many batches, none of them empty: collectives in a forward pass, as of buffers, would else
        wait for a rank that has ended.
        """
        samples, size = len(self._indices), self._loader.batch_size or 1
        if samples < part.world_size:
            raise ValueError(
                f"{part.world_size} ranks share {samples} samples, and each needs one: take fewer ranks, or more data"
            )
        if self._loader.drop_last:
            return [size] * (samples // (size * part.world_size))
        left = len(range(part.rank, samples, part.world_size))
        batches = min(ceil(samples / (size * part.world_size)), samples // part.world_size)
        shares = []
        for later in reversed(range(batches)):
            shares.append(min(size if later else inf, left - later))
            left -= shares[-1]
        return shares

    @property
    def _sampler(self) -> Any:
        return self._loader.sampler if self._loader.batch_sampler is None else self._loader.batch_sampler

    @property
    def _indices(self) -> Any:
        return getattr(self._loader.batch_sampler, "sampler", self._loader.sampler)

    @property
    def _by_index(self) -> bool:
        return self._loader.batch_sampler is None or type(self._loader.batch_sampler) is BatchSampler

    def _size(self, batch: Any) -> int:
        return len(batch) if self._loader.batch_sampler is not None and hasattr(batch, "__len__") else 1

    def _replica(self) -> Replica:
        """The rank whose part this is, and of how many: by a sampler that divides the order itself, else by torch."""
        return self._samplers.replica() or replica()

    def _part(self) -> Replica:
        """Which part of the samplers' order to take."""
        return replica() if self._distributed and self._samplers.replica() is None else Replica(0, 1)


def _placed_whole(key: tuple[int, int], batches: Iterable[Any], part: Replica) -> Iterator[Picked]:
    first = 0
    for group in _groups(batches, part.world_size):
        sizes = [len(batch) for batch in group]
        yield Picked(key, first + sum(sizes[: part.rank]), 1, group[part.rank])
        first += sum(sizes)


def _groups(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """``items`` in groups of ``count``; the last is filled up from the first.

    Example:
        >>> list(_groups("abcde", 3))
        [['a', 'b', 'c'], ['d', 'e', 'a']]
    """
    iterator = iter(items)
    head: list[Any] = []
    while group := list(islice(iterator, count)):
        head = head or group
        yield group + list(islice(cycle(head), count - len(group)))


def _batched(items: Iterator[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    """``items`` in lists of ``size``; the last may be shorter, unless it is to be dropped.

    Example:
        >>> list(_batched(iter("abc"), 2, drop_last=False))
        [['a', 'b'], ['c']]
    """
    while batch := list(islice(items, size)):
        if len(batch) == size or not drop_last:
            yield batch


def _discard(items: Iterator[Any], count: int | None) -> None:
    deque(islice(items, count), maxlen=0)
