"""Which kind of passes a loader makes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from torch.utils.data import DataLoader, IterableDataset, IterDataPipe

from stormproof.data.inner_loader import rebuilt
from stormproof.data.iterable_source import IterableStyle, SeededStream
from stormproof.data.map_source import MapStyle
from stormproof.data.rng import State
from stormproof.data.sample_seeds import draws_random_numbers
from stormproof.data.sampler_state import is_stateful


class Position(Protocol):
    """Where a pass is, as far as the count of its batches does not say."""

    def plain(self, again: int) -> State:
        """The same as plain values and tensors, for a resume that begins by asking for ``again`` batches again."""
        ...


class Source(Protocol):
    """Passes over data, each of which can begin anywhere; they draw nothing from the process' generators.

    Attributes:
        inner: the loader that does the work.
    """

    inner: Any

    def __len__(self) -> int: ...
    def world_size(self) -> int:
        """How many processes share a pass."""
        ...

    def start(self) -> State:
        """What a pass finds when it begins."""
        ...

    def position(self) -> Position | None:
        """Where the pass is; None if the count of its batches says it all."""
        ...

    def restore(self, start: State, position: State | None) -> None:
        """Goes back to what :meth:`start` and :meth:`position` gave."""
        ...

    def open(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of a pass without its first ``skip``."""
        ...

    def settle(self, seed: int, epoch: int, start: State, taken: int | None) -> None:
        """Leaves all as a pass leaves it whose first ``taken`` batches were taken; None: all of them."""
        ...


def source_of(loader: Any, distributed: bool, padded: bool = True) -> Source:
    """The passes of ``loader``.

    Args:
        loader: a DataLoader, or a loader of another kind that has ``state_dict`` and ``load_state_dict``.
        distributed: whether the batches of a map-style data set are to be divided among the ranks.
        padded: whether all ranks are to have as many samples of it, some of them twice.

    Raises:
        TypeError: if it is neither.
        ValueError: if it cannot be divided without ``padded``.

    Example:
        >>> type(source_of(DataLoader([1, 2]), distributed=True)).__name__
        'MapStyle'
    """
    if is_stateful(loader):
        return IterableStyle(partial(_itself, loader), loader, isolated=True)
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"resumable() takes a torch DataLoader, or a loader that has state_dict and load_state_dict; "
            f"a {type(loader).__name__} is neither"
        )
    if iterates_its_own_way(loader):
        return IterableStyle(partial(_itself, loader), None, isolated=True)
    if isinstance(loader.dataset, IterableDataset):
        in_process = loader.num_workers == 0
        stateful = loader.dataset if in_process and is_stateful(loader.dataset) else None
        return IterableStyle(partial(_seeded, loader), stateful, isolated=in_process and draws_random_numbers(loader))
    return MapStyle(loader, distributed, padded)


def iterates_its_own_way(loader: DataLoader[Any]) -> bool:
    """Whether its class, or a pipe of torch's for a data set, decides how it is iterated."""
    kind = type(loader)
    changed = kind.__iter__ is not DataLoader.__iter__ or kind._get_iterator is not DataLoader._get_iterator  # noqa: SLF001
    return changed or isinstance(loader.dataset, IterDataPipe)


def _itself(loader: Any) -> Any:
    return loader


def _seeded(loader: DataLoader[Any]) -> DataLoader[Any]:
    stream = SeededStream(loader.dataset)
    return rebuilt(loader, stream, None, batch_size=loader.batch_size, drop_last=loader.drop_last)
