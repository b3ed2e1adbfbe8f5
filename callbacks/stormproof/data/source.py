"""Chooses the source of batches for a loader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from torch.utils.data import DataLoader, IterableDataset, IterDataPipe

from stormproof.data.inner_loader import rebuild_loader
from stormproof.data.iterable_source import IterableSource, SeededIterableDataset
from stormproof.data.map_source import MapSource
from stormproof.data.rng import State
from stormproof.data.sample_seeds import draws_random_numbers
from stormproof.data.sampler_state import is_stateful


class Position(Protocol):
    """Position in an epoch that the number of batches does not determine."""

    def to_state(self, num_refetched: int) -> State:
        """Returns plain values and tensors, for a resume that first fetches ``num_refetched`` batches again."""
        ...


class Source(Protocol):
    """Epochs that can begin at any batch and preserve the global generators.

    Attributes:
        inner_loader: Loader that fetches the batches.
    """

    inner_loader: Any

    def __len__(self) -> int: ...
    def world_size(self) -> int:
        """Returns the number of processes that share an epoch."""
        ...

    def capture_start_state(self) -> State:
        """Returns the state at the beginning of an epoch."""
        ...

    def position(self) -> Position | None:
        """Returns the position in the epoch. None if the number of batches determines it."""
        ...

    def restore(self, start_state: State, position: State | None) -> None:
        """Restores states from :meth:`capture_start_state` and :meth:`position`."""
        ...

    def iterate(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """Returns the batches of an epoch without the first ``skip``."""
        ...

    def finish_epoch(self, seed: int, epoch: int, start_state: State, batches_taken: int | None) -> None:
        """Sets the state to that after ``batches_taken`` batches, or after the whole epoch if None."""
        ...


def make_source(loader: Any, distributed: bool, padded: bool = True) -> Source:
    """Returns the source of batches for ``loader``.

    Args:
        loader: A DataLoader, or another loader with ``state_dict`` and ``load_state_dict``.
        distributed: Whether to divide the order of a map-style data set among the ranks.
        padded: Whether all ranks get the same number of samples, some of them twice.

    Raises:
        TypeError: If ``loader`` is of another type.
        ValueError: If ``padded`` is False and the loader's samplers do not support this.

    Example:
        >>> type(make_source(DataLoader([1, 2]), distributed=True)).__name__
        'MapSource'
    """
    if is_stateful(loader):
        return IterableSource(partial(_return_loader, loader), loader, isolate_rng=True)
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"`loader` must be a torch DataLoader or have state_dict and load_state_dict, got {type(loader).__name__}."
        )
    if has_custom_iteration(loader):
        return IterableSource(partial(_return_loader, loader), None, isolate_rng=True)
    if isinstance(loader.dataset, IterableDataset):
        is_in_process = loader.num_workers == 0
        state_owner = loader.dataset if is_in_process and is_stateful(loader.dataset) else None
        return IterableSource(
            partial(_make_seeded_loader, loader),
            state_owner,
            isolate_rng=is_in_process and draws_random_numbers(loader),
        )
    return MapSource(loader, distributed, padded)


def has_custom_iteration(loader: DataLoader[Any]) -> bool:
    """Returns whether the class of the loader, or a torch IterDataPipe as data set, overrides the iteration."""
    loader_type = type(loader)
    is_overridden = loader_type.__iter__ is not DataLoader.__iter__ or (
        loader_type._get_iterator is not DataLoader._get_iterator  # noqa: SLF001
    )
    return is_overridden or isinstance(loader.dataset, IterDataPipe)


def _return_loader(loader: Any) -> Any:
    return loader


def _make_seeded_loader(loader: DataLoader[Any]) -> DataLoader[Any]:
    dataset = SeededIterableDataset(loader.dataset)
    return rebuild_loader(loader, dataset, None, batch_size=loader.batch_size, drop_last=loader.drop_last)
