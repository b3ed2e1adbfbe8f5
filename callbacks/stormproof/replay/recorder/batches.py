"""Records the batches and indices that DataLoaders return in the main process."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, dataloader
from torch.utils.weak import WeakIdKeyDictionary

from stormproof.replay.recorder.hashing import hash_value
from stormproof.replay.recorder.session import Session, is_loader_worker

_BaseDataLoaderIter: Any = dataloader._BaseDataLoaderIter


@dataclass
class LoaderRecord:
    """A loader.

    Attributes:
        is_training: Whether an optimizer step followed a batch of this loader.
    """

    is_training: bool = False


@dataclass
class _IteratorRecord:
    loader: LoaderRecord
    indices: deque[Any] = field(default_factory=deque[Any])  # of batches that workers prepare


@dataclass(frozen=True, slots=True)
class Batch:
    """A fetched batch: its hash, the hash of the sampler's indices, and the loader."""

    content: str
    indices: str | None
    loader: LoaderRecord
    in_training_mode: bool


class BatchLog:
    """Batches since the last step.

    A batch counts when the loader returns it. Batches that are fetched without gradients or in eval mode belong to a
    validation, unless their loader is a training loader in eval mode.

    Args:
        session: State of the recorder.
        in_training_mode: Returns whether the trained modules are in training mode.
    """

    def __init__(self, session: Session, in_training_mode: Callable[[], bool]) -> None:
        self._session = session
        self._in_training_mode = in_training_mode
        self._pending: list[Batch] = []
        self._loaders: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._iterators: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def take(self) -> list[Batch]:
        """Returns the training batches since the last step. The loader of the last one is a training loader."""
        pending, self._pending = self._pending, []
        batches = [batch for batch in pending if batch.in_training_mode or batch.loader.is_training]
        if batches:
            batches[-1].loader.is_training = True
        return batches

    def list_training_loaders(self) -> list[DataLoader[Any]]:
        """Returns the live training loaders."""
        return [loader for loader, record in list(self._loaders.items()) if record.is_training]

    def list_worker_seeds(self) -> list[int]:
        """Returns the seed of the workers of each live iterator of a training loader."""
        iterators = [iterator for iterator, record in list(self._iterators.items()) if record.loader.is_training]
        return [iterator._base_seed for iterator in iterators if iterator._num_workers > 0]

    def install(self) -> None:
        """Wraps the iterators of DataLoaders."""
        self._wrap_init()
        self._wrap_next_index()
        self._wrap_reset()
        self._wrap_next()

    def _wrap_init(self) -> None:
        original = _BaseDataLoaderIter.__init__

        @functools.wraps(original)
        def __init__(iterator: Any, loader: Any) -> None:  # noqa: N807
            with self._session.writer.guard("DataLoader.__iter__"):
                record = self._loaders.get(loader)
                if record is None:
                    record = self._loaders[loader] = LoaderRecord()
                self._iterators[iterator] = _IteratorRecord(record)
            original(iterator, loader)

        _BaseDataLoaderIter.__init__ = __init__

    def _wrap_next_index(self) -> None:
        original = _BaseDataLoaderIter._next_index

        @functools.wraps(original)
        def _next_index(iterator: Any) -> Any:
            indices = original(iterator)
            with self._session.writer.guard("DataLoader._next_index"):
                if iterator in self._iterators:
                    self._iterators[iterator].indices.append(indices)
            return indices

        _BaseDataLoaderIter._next_index = _next_index

    def _wrap_reset(self) -> None:
        original = _BaseDataLoaderIter._reset

        @functools.wraps(original)
        def _reset(iterator: Any, *args: Any, **kwargs: Any) -> None:
            with self._session.writer.guard("DataLoader._reset"):
                if iterator in self._iterators:  # persistent workers start another epoch
                    self._iterators[iterator].indices.clear()
            original(iterator, *args, **kwargs)

        _BaseDataLoaderIter._reset = _reset

    def _wrap_next(self) -> None:
        original = _BaseDataLoaderIter.__next__

        @functools.wraps(original)
        def __next__(iterator: Any) -> Any:  # noqa: N807
            is_first = iterator._num_yielded == 0
            try:
                data = original(iterator)
            except StopIteration:
                with self._session.writer.guard("DataLoader end"):
                    self._on_epoch(iterator)
                raise
            with self._session.writer.guard("DataLoader.__next__"):
                if is_first:
                    self._on_epoch(iterator)
                self._on_batch(iterator, data)
            return data

        _BaseDataLoaderIter.__next__ = __next__

    def _on_epoch(self, iterator: Any) -> None:
        record = self._iterators.get(iterator)
        if record is not None and record.loader.is_training and torch.is_grad_enabled():
            self._session.mark("epoch")

    def _on_batch(self, iterator: Any, data: Any) -> None:
        record = self._iterators.get(iterator)
        if record is None or is_loader_worker():
            return
        indices = record.indices.popleft() if record.indices else None
        in_training_mode = self._in_training_mode()
        if not torch.is_grad_enabled() or not (in_training_mode or record.loader.is_training):
            self._session.mark("validation")
            return
        if self._session.is_next_hashed():
            batch = Batch(hash_value(data), _hash_indices(indices), record.loader, in_training_mode)
        else:
            batch = Batch("", None, record.loader, in_training_mode)
        self._pending.append(batch)


def _hash_indices(indices: Any) -> str | None:
    """Returns None without a sampler: the sampler of an iterable data set returns None for each sample."""
    is_empty = indices is None or (isinstance(indices, list) and indices[:1] in ([], [None]))
    return None if is_empty else hash_value(indices)
