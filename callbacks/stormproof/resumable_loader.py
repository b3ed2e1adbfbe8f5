"""Loader that resumes exactly at its last position after a restart."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from stormproof.arguments import check_arguments
from stormproof.data.caveats import find_caveats
from stormproof.data.rng import State
from stormproof.data.sampler_state import is_stateful
from stormproof.data.source import Position, Source, make_source
from stormproof.distributed.collectives import world_size
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.errors import NotResumableError
from stormproof.lightning import internals


@dataclass(frozen=True, slots=True)
class Epoch:
    """One ``for`` loop over the loader.

    Attributes:
        index: Number of the epoch, from 0.
        start_state: State of the source at its beginning.
        length: Number of batches. None if unknown.
        previous_cursor: Last position in the previous epoch. None in the first epoch.
    """

    index: int
    start_state: State
    length: int | None
    previous_cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class SavedPosition:
    """Position from a loaded state."""

    state: State

    def to_state(self, num_refetched: int) -> State:
        """Returns the state for a resume that first fetches ``num_refetched`` more batches again."""
        return {**self.state, "num_refetched": self.state["num_refetched"] + num_refetched}


@dataclass(frozen=True, slots=True)
class Cursor:
    """Position in an epoch.

    Attributes:
        epoch: The epoch.
        batches_yielded: Number of batches yielded so far.
        position: Position of the source.
        previous_position: Position of the source before the last batch. A resume starts there and fetches that batch
            again, because the position at the end of an epoch may not determine how the next one continues.
        is_exhausted: Whether the source has no more batches.
    """

    epoch: Epoch
    batches_yielded: int
    position: Position | None = None
    previous_position: Position | None = None
    is_exhausted: bool = False

    @property
    def is_complete(self) -> bool:
        """True if the epoch is complete."""
        return self.is_exhausted or self.batches_yielded == self.epoch.length


MAX_REWIND_BATCHES = 8
"""Maximum number of prefetched batches that a state can exclude. Lightning prefetches one or two."""


@check_arguments()
def resumable(loader: Any, seed: int | None = None, distributed: bool = True, padded: bool = True) -> ResumableLoader:
    """Wraps a loader so that its order, position and augmentation resume exactly.

    Shuffling and augmentation use separate random numbers, so a shuffled loader yields different batches than it does
    without ``resumable``. With the same resumable loader, adding Stormproof's callbacks leaves the result
    bit-identical.

    Lightning saves the state of the loader in the checkpoint and restores it. The loader's own samplers determine the
    order of an epoch, with generators seeded by (seed, epoch). Before each sample, the generators of Python, NumPy and
    torch are seeded by (seed, epoch, position in the epoch), and so are separate generators of the data set. Batches
    therefore do not depend on the number of workers, and the loader does not change the random numbers of other code.

    For an iterable data set, the generators are seeded by (seed, epoch, worker). The data set resumes from its
    ``state_dict`` if it has one and ``num_workers`` is 0. Otherwise, a resume iterates again from the start of the
    epoch up to the current batch.

    Set the attribute ``draws_random_numbers = False`` on a data set that draws no random numbers. This saves the time
    to seed each sample. Data sets of torch and torchvision that certainly draw none are recognized.

    Samplers are several batches ahead of training. Their state at the current batch is restored from their
    ``state_dict``. Without one, the generators, numbers, strings and tensors in their attributes are restored.

    Args:
        loader: A torch DataLoader, or another loader with ``state_dict`` and ``load_state_dict``. A resumable loader is
            returned unchanged.
        seed: Any integer, equal on all ranks. Loaders of the same run need different seeds to draw different numbers.
            If None, the seed of ``seed_everything``, or otherwise torch's initial seed (0 on several ranks).
        distributed: Whether to divide the order of a map-style data set among the ranks, unless a sampler does so. With
            tensor parallelism, it is divided among the data-parallel ranks.
        padded: Whether all ranks get the same number of samples, some of them twice, as with torch's
            DistributedSampler. If False, each sample occurs once, as needed for evaluation. All ranks still have the
            same number of batches, but the last batches of some ranks have one sample fewer. With batches of one
            sample, the last batches of some ranks have two.

    Returns:
        A loader with the batches of ``loader``, in an order that depends on ``seed``.

    Raises:
        TypeError: If ``loader`` is neither a DataLoader nor stateful.
        ValueError: If ``padded`` is False and the loader has a custom batch sampler or a sampler that divides the data.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = resumable(DataLoader(range(6), batch_size=2, shuffle=True), seed=0)
        >>> batches = iter(loader)
        >>> _ = next(batches)
        >>> state = loader.state_dict()
        >>> rest = [batch.tolist() for batch in batches]
        >>> loader.load_state_dict(state)
        >>> rest == [batch.tolist() for batch in loader]
        True

    References:
        Builds on https://docs.pytorch.org/docs/stable/data.html. The state follows the protocol of stateful loaders,
        https://pytorch.org/data/0.11/stateful_dataloader_tutorial.html.

        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011): random numbers as a function of a key.
    """
    if isinstance(loader, ResumableLoader):
        return loader
    return ResumableLoader(loader, make_source(loader, distributed, padded), seed)


def find_loader_caveats(loader: Any) -> list[str]:
    """Returns the reasons why a resume of ``loader`` may not be exact, each with what to do.

    Args:
        loader: Argument of ``fit``, resumable or not.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> print(*find_loader_caveats(DataLoader([1, 2, 3])))  # doctest: +NORMALIZE_WHITESPACE
        its DataLoader does not save its position and random state: pass resumable(loader), or CheckpointRecovery(...,
        wrap_loaders=True)
        >>> find_loader_caveats(resumable(DataLoader([1, 2, 3])))
        []
    """
    if isinstance(loader, ResumableLoader):
        return find_caveats(loader.wrapped)
    type_name = type(loader).__name__
    if is_stateful(loader):
        return [f"its {type_name} does not save its random state: {_WRAP_ADVICE}"]
    if isinstance(loader, DataLoader):
        has_workers_or_generator = loader.num_workers > 0 or loader.generator is not None
        if not isinstance(loader.dataset, IterableDataset) and len(loader) == 1 and not has_workers_or_generator:
            return []  # each epoch starts with the restored random state of the process
        return [f"its {type_name} does not save its position and random state: {_WRAP_ADVICE}"]
    return [f"its {type_name} does not save its position: pass a torch DataLoader, wrapped with resumable(loader)"]


_WRAP_ADVICE = "pass resumable(loader), or CheckpointRecovery(..., wrap_loaders=True)"


class ResumableLoader:
    """Loader that :func:`resumable` returns. Each ``for`` loop is an epoch, which begins with its first batch.

    Attributes:
        dataset: Data set of the user.
        batch_size: Samples per batch. None with a custom batch sampler.
        num_workers: Number of worker processes.
        wrapped: Loader of the user.
    """

    def __init__(self, loader: Any, source: Source, seed: int | None) -> None:
        self.dataset: Any = getattr(loader, "dataset", None)
        self.batch_size: int | None = getattr(loader, "batch_size", None)
        self.num_workers: int = getattr(loader, "num_workers", 0)
        self.wrapped: Any = loader
        self._source = source
        self._seed = seed
        self._cursor: Cursor | None = None  # None before the first epoch
        self._recent_cursors: deque[Cursor] = deque(maxlen=MAX_REWIND_BATCHES)
        self._loaded_state: State | None = None  # until an epoch begins from it
        self._is_epoch_requested = False  # for an epoch that has not begun

    def __iter__(self) -> Iterator[Any]:
        self._is_epoch_requested = True
        return _BatchIterator(self._iterate_batches())

    def _iterate_batches(self) -> Iterator[Any]:
        cursor = self._make_next_cursor()
        make_forks_safe()
        batches = self._source.iterate(self.seed, cursor.epoch.index, cursor.batches_yielded)
        cursor = self._cursor = replace(cursor, position=cursor.position or self._source.position())
        while True:
            self._is_epoch_requested = False
            try:
                batch = next(batches)
            except StopIteration:
                self._cursor = replace(cursor, is_exhausted=True)
                return
            self._recent_cursors.append(cursor)
            cursor = self._cursor = Cursor(
                cursor.epoch, cursor.batches_yielded + 1, self._source.position(), cursor.position
            )
            yield batch
            if self._cursor is not cursor:
                raise RuntimeError(
                    "Another loop over this resumable loader began, or a state was loaded, before this loop ended "
                    f"(batches so far: {cursor.batches_yielded}). Use a separate loader for each loop."
                )

    def __len__(self) -> int:
        return len(self._source)

    @property
    def seed(self) -> int:
        """Seed of the order and the random numbers."""
        if self._seed is None:
            self._seed = default_seed()
        return self._seed

    def state_dict(self, num_prefetched: int = 0, requested_only: bool = False) -> State:
        """Returns the position of the loader, as plain values and tensors.

        At the end of an epoch, this is the beginning of the next one.

        Args:
            num_prefetched: Number of the last batches that a resume yields again, from 0 to 8.
            requested_only: Whether to stay at the end of an epoch until the next one is requested. Needed together with
                a longer loader.

        Raises:
            ValueError: If fewer batches were yielded since the loader was created or restored.
        """
        if not 0 <= num_prefetched <= len(self._recent_cursors):
            raise ValueError(
                f"`num_prefetched` must be at most {len(self._recent_cursors)}, the number of recent batches, and at "
                f"least 0, got {num_prefetched}."
            )
        if num_prefetched:
            return self._make_state(self._recent_cursors[-num_prefetched])
        if self._loaded_state is not None:
            return self._loaded_state
        cursor = self._cursor or self._make_first_cursor()
        is_requested = self._is_epoch_requested and self._cursor is not None
        return self._make_state(cursor, is_finished=is_requested or (cursor.is_complete and not requested_only))

    def next_epoch_state(self) -> State:
        """Returns a state from which the next ``for`` loop begins a new epoch, from any position."""
        if self._loaded_state is not None:
            return {**self._loaded_state, "is_finished": True} if self._loaded_state["batches"] else self._loaded_state
        return self.state_dict() if self._cursor is None else self._make_state(self._cursor, is_finished=True)

    def load_state_dict(self, state: State) -> None:
        """Resumes from ``state`` with the next ``for`` loop.

        If the world size has changed, resumes after the samples that all ranks had taken together.

        Raises:
            NotResumableError: If the state belongs to a data set of another length, or to another batch size with the
                same world size.
        """
        if not self.state_dict().keys() <= state.keys():
            reason = "saved by an earlier release" if "seed" in state else "not saved by a resumable loader"
            raise NotResumableError(
                f"The state with the keys {sorted(map(str, state))} was {reason}. Wrap the same loaders as in the run "
                "that saved it, with the same release."
            )
        for name, current_value in self._describe_data().items():
            saved_value = state["data_description"].get(name)
            if saved_value != current_value and (
                name != "batch_size" or state["world_size"] == self._source.world_size()
            ):
                raise NotResumableError(
                    f"The state of the loader was saved with {name}={saved_value}, but this loader has "
                    f"{name}={current_value}. Resume with the same data and batches, or begin a new run. A value that "
                    "changes during training must depend on trainer.current_epoch or be saved in a state_dict."
                )
        self._loaded_state = state
        self._seed = state["seed"]
        self._cursor = None
        self._recent_cursors.clear()

    def _make_next_cursor(self) -> Cursor:
        if self._loaded_state is not None:
            cursor = self._make_cursor(self._loaded_state)
            self._loaded_state = None
            return cursor
        return self._make_first_cursor() if self._cursor is None else self._advance_epoch(self._cursor)

    def _make_first_cursor(self) -> Cursor:
        return Cursor(Epoch(0, self._source.capture_start_state(), _get_length(self)), 0)

    def _advance_epoch(self, cursor: Cursor) -> Cursor:
        epoch = cursor.epoch
        self._source.finish_epoch(
            self.seed, epoch.index, epoch.start_state, None if cursor.is_complete else cursor.batches_yielded
        )
        previous_cursor = replace(cursor, epoch=replace(epoch, previous_cursor=None))  # drops all earlier epochs
        return Cursor(Epoch(epoch.index + 1, self._source.capture_start_state(), _get_length(self), previous_cursor), 0)

    def _make_cursor(self, state: State) -> Cursor:
        if state["world_size"] != self._source.world_size():
            state = {**state, "batches": self._convert_batch_count(state)}
        saved_position = state["position"]
        self._source.restore(state["start_state"], saved_position)
        length = state["batches"] if state["is_complete"] else _get_length(self)
        cursor = Cursor(
            Epoch(state["epoch"], state["start_state"], length),
            state["batches"],
            saved_position and SavedPosition(saved_position),
        )
        return self._advance_epoch(cursor) if state["is_finished"] else cursor

    def _convert_batch_count(self, state: State) -> int:
        """Converts the number of batches to the current world size. The number of samples stays the same."""
        world_size = self._source.world_size()
        if state["is_complete"]:
            return _get_length(self) or state["batches"]
        if not state["batches"]:
            return 0
        if state["position"] is not None or isinstance(self.dataset, IterableDataset):
            raise NotResumableError(
                f"The state of the loader was saved with world size {state['world_size']}, but this job has world size "
                f"{world_size}. An iterable data set resumes only with world size {state['world_size']}."
            )
        samples_taken = state["batches"] * state["world_size"] * (state["data_description"]["batch_size"] or 1)
        batches, remainder = divmod(samples_taken, world_size * (self.batch_size or 1))
        if remainder:
            raise NotResumableError(
                f"The loader had yielded {samples_taken} samples with world size {state['world_size']}, which is not a "
                f"multiple of {world_size} x {self.batch_size or 1} (world size x batch size). Choose another batch "
                f"size, or world size {state['world_size']}."
            )
        return batches

    def _make_state(self, cursor: Cursor, is_finished: bool = False) -> State:
        if cursor.batches_yielded == 0 and cursor.epoch.previous_cursor is not None and not cursor.is_exhausted:
            return self._make_state(cursor.epoch.previous_cursor, is_finished=True)
        is_refetched = cursor.previous_position is not None and (is_finished or cursor.batches_yielded > 1)
        position = cursor.previous_position if is_refetched else cursor.position
        return {
            "seed": self.seed,
            "epoch": cursor.epoch.index,
            "batches": cursor.batches_yielded,
            "is_complete": cursor.is_complete,
            "is_finished": is_finished,
            "start_state": cursor.epoch.start_state,
            "position": position and position.to_state(int(is_refetched)),
            "world_size": self._source.world_size(),
            "data_description": self._describe_data(),
        }

    def _describe_data(self) -> dict[str, Any]:
        data_description = {"samples": _get_length(self.dataset), "batch_size": self.batch_size}
        if isinstance(self.dataset, IterableDataset):  # each worker yields separate batches
            data_description["num_workers"] = self.num_workers
        return data_description

    @property
    def loaders_with_workers(self) -> list[Any]:
        """The user's loader and the inner loader, which may be rebuilt after a resume."""
        return [self.wrapped, self._source.inner_loader]

    @property
    def _iterator(self) -> Any:
        """Iterator of the inner loader. Lightning shuts down its workers when ``fit`` ends."""
        return getattr(self._source.inner_loader, "_iterator", None)

    @_iterator.setter
    def _iterator(self, none: None) -> None:
        if hasattr(self._source.inner_loader, "_iterator"):
            self._source.inner_loader._iterator = none  # noqa: SLF001 (torch's name, which Lightning sets too)


class _BatchIterator:
    """Iterates over the batches of one epoch. A copy, as in a deep copy of a trainer, is empty."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return iter, ((),)


def _get_length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def default_seed() -> int:
    """Returns the seed of loaders without an explicit seed."""
    if "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return torch.initial_seed() if world_size() == 1 else 0


def wrap_training_loaders(trainer: pl.Trainer) -> Callable[[], None]:
    """Wraps each training loader with :func:`resumable` when Lightning requests it.

    Each loader gets its own seed. The seed depends on the epoch in which Lightning requests the loader. Otherwise
    ``reload_dataloaders_every_n_epochs`` would repeat the order of the first epoch. Loaders that ``resumable`` does not
    support are left unchanged, and ``CheckpointRecovery`` warns about them.

    Returns:
        Function that undoes this.
    """
    is_distributed = internals.uses_distributed_sampler(trainer)

    def wrap(loaders: list[Any]) -> list[Any]:
        base_seed = default_seed() + trainer.current_epoch * len(loaders)
        return [
            resumable(loader, base_seed + index, is_distributed)
            if isinstance(loader, DataLoader) or is_stateful(loader)
            else loader
            for index, loader in enumerate(loaders)
        ]

    return internals.change_training_loaders(trainer, wrap)
