"""A loader that goes on, after a restart, exactly where it was."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from stormproof.data.caveats import find_caveats
from stormproof.data.cursor import Cursor, Epoch, SavedPosition
from stormproof.data.rng import State
from stormproof.data.sampler_state import is_stateful
from stormproof.data.shard import current_replica
from stormproof.data.source import Source, make_source
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.errors import NotResumableError

MAX_REWIND_BATCHES = 8
"""Batches that a state may lie behind; Lightning fetches one or two ahead of the one it trains on."""


def resumable(loader: Any, seed: int | None = None, distributed: bool = True, padded: bool = True) -> ResumableLoader:
    """A loader with the samples of ``loader`` whose order, position and augmentation resume exactly.

    Shuffling and augmentation use their own random numbers, so a shuffled loader yields other batches than without
    ``resumable``. With the same resumable loader, adding Stormproof's callbacks leaves the result bit-identical.

    It has a state that Lightning saves and hands back with the checkpoint. The order of a pass is what the loader's own
    samplers give from generators seeded by (seed, epoch); each sample draws from Python's, NumPy's and torch's
    generators as seeded by (seed, epoch, its position in the pass): so the number of workers changes nothing, and what
    is drawn here is not missed elsewhere. An iterable data set draws from generators seeded by (seed, epoch, worker);
    where it has a ``state_dict`` and no workers it is resumed by that, else its pass is run again up to the batch.

    A data set that draws nothing may say so, by an attribute ``draws_random_numbers = False``, and pays nothing.

    Samplers are asked for some batches at once, ahead of their use. What they remember from pass to pass is resumed:
    generators, numbers and words among their attributes, all of it where they have a ``state_dict``.

    Args:
        loader: any torch DataLoader, or a loader that has ``state_dict`` and ``load_state_dict``. A resumable one is
            given back as it is.
        seed: None: that of ``seed_everything`` where it was called; else torch's initial seed, or 0 on several ranks,
            which must agree. Loaders used side by side draw the same numbers unless each has a seed of its own.
        distributed: whether to divide the order of a map-style data set among the ranks, where no sampler does.
        padded: whether the ranks then have as many samples each, for which some samples come twice, as torch's
            DistributedSampler has it. False: each comes once, as the numbers of an evaluation want it, and the ranks
            have as many batches still: the last ones of some have a sample less, or, of batches of one, two samples.

    Raises:
        TypeError: if ``loader`` is neither.
        ValueError: if ``loader`` cannot be divided without ``padded``: it has a batch sampler of its own, or a sampler
            that divides.

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
    """
    if isinstance(loader, ResumableLoader):
        return loader
    return ResumableLoader(loader, make_source(loader, distributed, padded), seed)


def find_loader_caveats(loader: Any) -> list[str]:
    """Returns the reasons why a resume of ``loader`` may not be exact, each with what to do.

    Args:
        loader: what is handed to ``fit``, resumable or not.

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
        return [f"its {type_name} does not save its position and random state: {_WRAP_ADVICE}"]
    return [f"its {type_name} does not save its position: pass a torch DataLoader, wrapped with resumable(loader)"]


_WRAP_ADVICE = "pass resumable(loader), or CheckpointRecovery(..., wrap_loaders=True)"


class ResumableLoader:
    """What :func:`resumable` returns. Each ``for`` loop over it is a pass, which begins with its first batch.

    Attributes:
        dataset: the user's data set.
        batch_size: samples of a batch; None where a batch sampler decides.
        num_workers: processes that fetch.
        wrapped: the user's loader.
    """

    def __init__(self, loader: Any, source: Source, seed: int | None) -> None:
        self.dataset: Any = getattr(loader, "dataset", None)
        self.batch_size: int | None = getattr(loader, "batch_size", None)
        self.num_workers: int = getattr(loader, "num_workers", 0)
        self.wrapped: Any = loader
        self._source = source
        self._seed = seed
        self._cursor: Cursor | None = None  # None before the first pass
        self._recent_cursors: deque[Cursor] = deque(maxlen=MAX_REWIND_BATCHES)
        self._loaded_state: State | None = None  # until a pass begins from it
        self._is_epoch_requested = False  # for a pass that has not begun

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
                    f"another pass over this resumable loader began, or a state was loaded, after "
                    f"{cursor.batches_yielded} "
                    "batches of this one: give each use a loader of its own"
                )

    def __len__(self) -> int:
        return len(self._source)

    @property
    def seed(self) -> int:
        """What fixes the order and the random numbers."""
        if self._seed is None:
            self._seed = default_seed()
        return self._seed

    def state_dict(self, num_prefetched: int = 0, requested_only: bool = False) -> State:
        """Where the loader is, as plain values and tensors; at the end of a pass: where the next begins.

        Args:
            num_prefetched: how many of the batches handed out last are to be handed out again, 0 to 8.
            requested_only: where the next begins only once it was asked for. Beside a longer loader, a pass that has
                ended may have to stay so.

        Raises:
            ValueError: if it handed out fewer since it was made or loaded, or more than it remembers.
        """
        if num_prefetched > len(self._recent_cursors):
            raise ValueError(
                f"ahead is {num_prefetched}; this loader can go back by {len(self._recent_cursors)} batches"
            )
        if num_prefetched:
            return self._make_state(self._recent_cursors[-num_prefetched])
        if self._loaded_state is not None:
            return self._loaded_state
        cursor = self._cursor or self._make_first_cursor()
        is_requested = self._is_epoch_requested and self._cursor is not None
        return self._make_state(cursor, is_finished=is_requested or (cursor.is_complete and not requested_only))

    def next_epoch_state(self) -> State:
        """The state from which the next ``for`` loop begins a pass of its own, wherever this one is."""
        if self._loaded_state is not None:
            return {**self._loaded_state, "ended": True} if self._loaded_state["batches"] else self._loaded_state
        return self.state_dict() if self._cursor is None else self._make_state(self._cursor, is_finished=True)

    def load_state_dict(self, state: State) -> None:
        """Goes on at ``state`` with the next ``for`` loop.

        One that another number of ranks saved is the place behind the samples that they had taken together.

        Raises:
            NotResumableError: if it belongs to a data set of another length, or, of as many ranks, another batch size.
        """
        if "fits" not in state:
            raise NotResumableError(
                f"the state with the keys {sorted(map(str, state))} was not saved by a resumable loader: "
                "wrap the same loaders as in the run that saved it"
            )
        for name, current_value in self._describe_data().items():
            saved_value = state["fits"].get(name)
            if saved_value != current_value and (
                name != "batch_size" or state["world_size"] == self._source.world_size()
            ):
                raise NotResumableError(
                    f"the state of the loader was saved with {name} {saved_value} and this one has {current_value}: "
                    "go on with the same data and batches, or begin a new run"
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
        previous_cursor = replace(cursor, epoch=replace(epoch, previous_cursor=None))  # not every earlier epoch
        return Cursor(Epoch(epoch.index + 1, self._source.capture_start_state(), _get_length(self), previous_cursor), 0)

    def _make_cursor(self, state: State) -> Cursor:
        if state["world_size"] != self._source.world_size():
            state = {**state, "batches": self._convert_batch_count(state)}
        saved_position = state["position"]
        self._source.restore(state["start"], saved_position)
        length = state["batches"] if state["whole"] else _get_length(self)
        cursor = Cursor(
            Epoch(state["epoch"], state["start"], length),
            state["batches"],
            saved_position and SavedPosition(saved_position),
        )
        return self._advance_epoch(cursor) if state["ended"] else cursor

    def _convert_batch_count(self, state: State) -> int:
        """How many batches of this many ranks have the samples that were taken by another number of them."""
        world_size = self._source.world_size()
        if state["whole"]:
            return _get_length(self) or state["batches"]
        if not state["batches"]:
            return 0
        if state["position"] is not None or isinstance(self.dataset, IterableDataset):
            raise NotResumableError(
                f"the state of the loader was saved by {state['world_size']} ranks and this job has {world_size}, and "
                f"the "
                "place in an iterable data set is each rank's own: start it with as many"
            )
        samples_taken = state["batches"] * state["world_size"] * (state["fits"]["batch_size"] or 1)
        batches, remainder = divmod(samples_taken, world_size * (self.batch_size or 1))
        if remainder:
            raise NotResumableError(
                f"the loader had given {samples_taken} samples to {state['world_size']} ranks, which are no whole "
                f"batches of "
                f"{self.batch_size or 1} for {world_size}: choose another batch size, or as many ranks"
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
            "whole": cursor.is_complete,
            "ended": is_finished,
            "start": cursor.epoch.start_state,
            "position": position and position.to_state(int(is_refetched)),
            "world_size": self._source.world_size(),
            "fits": self._describe_data(),
        }

    def _describe_data(self) -> dict[str, Any]:
        data_description = {"samples": _get_length(self.dataset), "batch_size": self.batch_size}
        if isinstance(self.dataset, IterableDataset):  # each worker yields batches of its own
            data_description["num_workers"] = self.num_workers
        return data_description

    @property
    def loaders_with_workers(self) -> list[Any]:
        """The user's loader, and the one behind it, which is made from it once or each pass anew."""
        return [self.wrapped, self._source.inner_loader]

    @property
    def _iterator(self) -> Any:
        """Where Lightning looks for workers to stop when a fit ends."""
        return getattr(self._source.inner_loader, "_iterator", None)

    @_iterator.setter
    def _iterator(self, none: None) -> None:
        if hasattr(self._source.inner_loader, "_iterator"):
            self._source.inner_loader._iterator = none  # noqa: SLF001 (torch's name, which Lightning sets too)


class _BatchIterator:
    """The batches of one pass. A copy, as in a deep copy of a trainer, has none: the original owns the pass."""

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
    """Returns the seed of loaders that have none of their own."""
    if "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return torch.initial_seed() if current_replica().world_size == 1 else 0
