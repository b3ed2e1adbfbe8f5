"""Which kind of passes a loader makes."""

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
    """Where a pass is, as far as the count of its batches does not say."""

    def to_state(self, num_refetched: int) -> State:
        """Returns plain values and tensors, for a resume that first fetches ``num_refetched`` batches again."""
        ...


class Source(Protocol):
    """Passes over data, each of which can begin anywhere; they draw nothing from the process' generators.

    Attributes:
        inner_loader: the loader that does the work.
    """

    inner_loader: Any

    def __len__(self) -> int: ...
    def world_size(self) -> int:
        """How many processes share a pass."""
        ...

    def capture_start_state(self) -> State:
        """What a pass finds when it begins."""
        ...

    def position(self) -> Position | None:
        """Where the pass is; None if the count of its batches says it all."""
        ...

    def restore(self, start_state: State, position: State | None) -> None:
        """Goes back to what :meth:`capture_start_state` and :meth:`position` gave."""
        ...

    def iterate(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of a pass without its first ``skip``."""
        ...

    def finish_epoch(self, seed: int, epoch: int, start_state: State, batches_taken: int | None) -> None:
        """Leaves all as a pass leaves it whose first ``batches_taken`` batches were taken; None: all of them."""
        ...


def make_source(loader: Any, distributed: bool, padded: bool = True) -> Source:
    """The passes of ``loader``.

    Args:
        loader: a DataLoader, or a loader of another kind that has ``state_dict`` and ``load_state_dict``.
        distributed: whether the batches of a map-style data set are to be divided among the ranks.
        padded: whether all ranks are to have as many samples of it, some of them twice.

    Raises:
        TypeError: if it is neither.
        ValueError: if it cannot be divided without ``padded``.

    Example:
        >>> type(make_source(DataLoader([1, 2]), distributed=True)).__name__
        'MapSource'
    """
    if is_stateful(loader):
        return IterableSource(partial(_return_loader, loader), loader, isolate_rng=True)
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"resumable() takes a torch DataLoader, or a loader that has state_dict and load_state_dict; "
            f"a {type(loader).__name__} is neither"
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
    """Whether its class, or a pipe of torch's for a data set, decides how it is iterated."""
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
