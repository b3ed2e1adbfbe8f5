"""A map-style loader whose passes can begin anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from stormproof.data.batch_order import BatchOrder
from stormproof.data.inner_loader import rebuilt
from stormproof.data.rng import State, Untouched
from stormproof.data.sample_seeds import Picked, SeededSamples, draws_random_numbers


class MapStyle:
    """The passes of a map-style ``loader``: each is a function of (seed, epoch) and the state of its samplers.

    Args:
        loader: the user's; its workers, its way to collate and to pin memory are taken over.
        distributed: whether to divide the order among the ranks.
        padded: whether to give all ranks as many samples, some of them twice.
    """

    def __init__(self, loader: DataLoader[Any], distributed: bool, padded: bool = True) -> None:
        self._order = BatchOrder(loader, distributed, padded)
        self._remaining = _Remaining(self._order)
        self._base = torch.Generator()
        draws = draws_random_numbers(loader)
        self._untouched = draws and loader.num_workers == 0
        in_batches = loader.batch_sampler is not None
        order = {"batch_sampler": self._remaining} if in_batches else {"sampler": self._remaining, "batch_size": None}
        self.inner = rebuilt(loader, SeededSamples(loader.dataset, draws), self._base, **order)

    def __len__(self) -> int:
        return len(self._order)

    def world_size(self) -> int:
        """How many processes share a pass."""
        return self._order.world_size()

    def start(self) -> State:
        """What the samplers remember."""
        return self._order.start()

    def position(self) -> None:
        """Nothing: the count of batches says where a pass is."""

    def restore(self, start: State, position: State | None) -> None:
        """Puts the samplers into the state of a pass' start."""
        self._order.restore(start)

    def open(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of a pass without its first ``skip``; the process' generators are left alone."""
        self._base.manual_seed(seed % 2**64)  # what a user's worker_init_fn draws is the same in every pass
        self._remaining.begin(seed, epoch, skip)
        batches = iter(self.inner)
        return _untouched(batches) if self._untouched else batches

    def settle(self, seed: int, epoch: int, start: State, taken: int | None) -> None:
        """Leaves the samplers as a pass leaves them of which ``taken`` batches were taken; None: all."""
        self._order.settle(seed, epoch, start, taken)


class _Remaining:
    """What the inner loader takes for its sampler: the rest of the pass that was begun last."""

    def __init__(self, order: BatchOrder) -> None:
        self._order = order
        self._pass = (0, 0, 0)

    def begin(self, seed: int, epoch: int, skip: int) -> None:
        self._pass = (seed, epoch, skip)

    def __iter__(self) -> Iterator[Picked]:
        return self._order.batches(*self._pass)


def _untouched(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with Untouched():
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch
