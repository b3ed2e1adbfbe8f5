"""Epochs of a map-style loader that can begin at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from stormproof.data.batch_order import BatchOrder
from stormproof.data.inner_loader import rebuild_loader
from stormproof.data.rng import State
from stormproof.data.sample_seeds import SeededIndices, SeededSamples


class MapSource:
    """Epochs of a map-style loader, each a function of (seed, epoch) and the state of the samplers.

    Args:
        loader: Loader of the user, with the settings for workers, collating and pinned memory.
        distributed: Whether to divide the order among the ranks.
        padded: Whether all ranks get the same number of samples, some of them twice.
    """

    def __init__(self, loader: DataLoader[Any], distributed: bool, padded: bool = True) -> None:
        self._order = BatchOrder(loader, distributed, padded)
        self._remaining_batches = _RemainingBatches(self._order)
        self._base_generator = torch.Generator()
        self._is_in_process = loader.num_workers == 0
        self._samples = SeededSamples(loader, preserves_rng=self._is_in_process)
        has_batch_sampler = loader.batch_sampler is not None
        sampling_arguments = (
            {"batch_sampler": self._remaining_batches}
            if has_batch_sampler
            else {"sampler": self._remaining_batches, "batch_size": None}
        )
        self.inner_loader = rebuild_loader(
            loader, self._samples, self._base_generator, collate_fn=self._samples.collate_seeded, **sampling_arguments
        )

    def __len__(self) -> int:
        return len(self._order)

    def world_size(self) -> int:
        """Returns the number of processes that share an epoch."""
        return self._order.world_size()

    def capture_start_state(self) -> State:
        """Returns the state of the samplers."""
        return self._order.capture_start_state()

    def position(self) -> None:
        """Returns None, because the number of batches determines the position."""

    def restore(self, start_state: State, position: State | None) -> None:
        """Restores the samplers to their state at the start of an epoch."""
        self._order.restore(start_state)

    def iterate(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """Returns the batches of an epoch without the first ``skip``. Preserves the generators of the process."""
        self._base_generator.manual_seed(seed % 2**64)  # a user's worker_init_fn draws the same numbers in every epoch
        self._remaining_batches.begin_epoch(seed, epoch, skip)
        self._samples.restart_search()
        batches = iter(self.inner_loader)
        return _iterate_preserving_rng(batches, self._samples) if self._is_in_process else batches

    def finish_epoch(self, seed: int, epoch: int, start_state: State, batches_taken: int | None) -> None:
        """Sets the samplers to their state after ``batches_taken`` batches, or after the whole epoch if None."""
        self._order.finish_epoch(seed, epoch, start_state, batches_taken)


class _RemainingBatches:
    """Sampler of the inner loader: the remaining batches of the current epoch."""

    def __init__(self, order: BatchOrder) -> None:
        self._order = order
        self._epoch_arguments = (0, 0, 0)

    def begin_epoch(self, seed: int, epoch: int, skip: int) -> None:
        self._epoch_arguments = (seed, epoch, skip)

    def __iter__(self) -> Iterator[SeededIndices]:
        return self._order.iterate(*self._epoch_arguments)


def _iterate_preserving_rng(batches: Iterator[Any], samples: SeededSamples) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        finally:
            samples.restore_rng()
        yield batch
